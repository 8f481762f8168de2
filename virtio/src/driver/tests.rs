//! Both ends against plain models, and the driver's rings against those of Linux 3.8.

mod model;
mod reference;
