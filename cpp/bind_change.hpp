// Adds the replacement of a mask to the module.
#pragma once

#include <nanobind/nanobind.h>

void bind_change(nanobind::module_& module);
