//! The words that an expression may use besides its variables: what it can call, and the fields of `event({…})`. Pure.

/// What may be called besides operators and macros. All of it is linear in its arguments.
pub(super) const FUNCTIONS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "timestamp",
    "duration",
    "type",
    "dyn",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "lowerAscii",
    "upperAscii",
    "trim",
    "substring",
    "split",
];
/// Of these, those that walk a text.
pub(super) const WALKERS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "string",
    "bytes",
    "lowerAscii",
    "upperAscii",
    "trim",
    "substring",
    "split",
];
/// Names of types, as in `type(key) == string`.
pub(super) const TYPES: &[&str] =
    &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

/// What stands around the fields of a transform that changes more than the payload,
pub(super) const EVENT: &str = "event";
/// and what they are.
pub(super) const FIELDS: &[&str] = &["payload", "headers", "key", "sink"];
