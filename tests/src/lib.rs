//! The lab: disposable hosts and real servers for tests.
