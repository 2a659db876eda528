//! The names an expression may use besides its variables: functions, types, and the fields of `event({…})`.
//! Pure.

/// Functions besides operators and macros. Each is linear in its arguments.
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
/// Functions that read a whole text.
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

/// The function that a transform calls to change more than the payload.
pub(super) const EVENT: &str = "event";
/// The fields of `event({…})`.
pub(super) const FIELDS: &[&str] = &["payload", "headers", "key", "sink"];
