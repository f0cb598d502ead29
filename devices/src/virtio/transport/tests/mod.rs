//! Tests of the transport as a driver sees it.
