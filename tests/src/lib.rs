//! End-to-end tests over real guests, interoperation tests and benchmarks against peers.
