// Adds compressed matrices and their products to the module.
#pragma once

#include <nanobind/nanobind.h>

void bind_sparse(nanobind::module_& module);
