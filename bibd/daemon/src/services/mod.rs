//! The use cases, one file each. A use case takes a [`crate::actor::Call`] first, decides by `bib_core::access`, does
//! its work in one transaction together with its audit entry, and returns domain types or a [`ServiceError`].
//!
//! Nothing here contains SQL. [`Edge::build`] is where services are built and their handlers are put together.

pub mod error;

use std::sync::Arc;

use tonic::service::Routes;

use crate::foundation::Foundation;
use crate::grpc::stack::{Authenticator, RefusalSink};

pub use error::ServiceError;
