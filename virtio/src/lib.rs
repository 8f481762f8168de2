//! Split-ring virtqueues, both ends: the device's and the driver's, with piecewise submission.
