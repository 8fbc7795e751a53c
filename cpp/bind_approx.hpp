// Adds every solver but the exact one to the module.
#pragma once

#include <nanobind/nanobind.h>

void bind_approx(nanobind::module_& module);
