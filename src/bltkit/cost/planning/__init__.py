"""`blt flops --mesh`: memory, traffic and time of a training on a mesh of devices, from shapes and data sheets."""
