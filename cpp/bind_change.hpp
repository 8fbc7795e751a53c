// Adds the comparison of masks to the module.
#pragma once

#include <nanobind/nanobind.h>

void bind_change(nanobind::module_& module);
