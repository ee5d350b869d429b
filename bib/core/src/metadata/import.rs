//! Reads what other formats say about a dataset.
