//! Unmodified clients of the field against the real program. They come from public registries by `tests/clients/install.sh`; what they
//! check is in `tests/clients`, one program per client; here the broker is started, they are run, and the broker is killed.

pub mod clients;
mod crash;
mod hostile;
mod java;
mod kcat;
mod scenarios;
