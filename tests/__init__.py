"""A package: else tests/sparse would be a module named sparse, which scipy takes for a library."""
