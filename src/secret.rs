//! References to secrets, `env:NAME` and `file:NAME`, resolved when used and never printed.
