//! The interceptors, outermost first: request id, tracing, panic recovery, metrics, rate limit, authentication with
//! the audit of what was refused.

pub mod auth;
pub mod methods;
