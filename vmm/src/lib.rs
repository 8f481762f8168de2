//! A virtual machine monitor: library and command line.
