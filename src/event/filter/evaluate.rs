//! Runs a compiled expression for an event, and describes its errors without data of the event. Pure.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cel::{
    Context, ExecutionError, IdedExpr, Value,
    common::{
        ast::operators,
        value::{CowVal, Val},
    },
};
use regex::Regex;

use super::{Facts, meter::ENV, short, value::Evaluation};

/// Evaluates an expression and converts its value, which borrows from the evaluation.
pub(super) fn run<T>(
    text: &str,
    expression: &IdedExpr,
    patterns: &Arc<[Regex]>,
    facts: &Facts<'_>,
    convert: impl FnOnce(&dyn Val) -> Result<T, String>,
) -> Result<T, String> {
    // A panic would be a bug of the CEL crate. It must affect only this subscription.
    catch_unwind(AssertUnwindSafe(|| {
        let evaluation = Evaluation::new(facts, patterns);
        let made = {
            let mut context = Context::with_env(ENV.clone());
            context.set_variable_resolver(&evaluation);
            let value: Result<CowVal<'_, '_>, _> = Value::resolve_val(expression, &context);
            value.map_err(|error| explain(&error, text)).and_then(|value| convert(value.as_ref()))
        };
        // `||` may have hidden these errors.
        if evaluation.meter.is_spent() {
            return Err("it exceeds the work limit of one event".to_owned());
        }
        made.map_err(|why| {
            evaluation.unreadable().map_or(why, |reason| format!("the payload cannot be read: {reason}"))
        })
    }))
    .unwrap_or_else(|_| Err("it makes the evaluation panic".to_owned()))
}

/// Describes an error without values of the payload, which must not get into logs and tables. Names are shown
/// only if they are in the expression.
fn explain(error: &ExecutionError, text: &str) -> String {
    let function = |name: &str| name.trim_start_matches('@').trim_matches('_').to_owned();
    match error {
        ExecutionError::NoSuchKey(key) if text.contains(key.as_str()) => {
            format!("there is no key {:?}; check it with has(…)", short(key))
        }
        // The name comes from the payload.
        ExecutionError::NoSuchKey(_) => "there is no such key; check it with `in`".to_owned(),
        ExecutionError::UndeclaredReference(name) => format!("there is no {:?} here", short(name)),
        ExecutionError::NoSuchOverload(overload) if overload.function() == operators::INDEX => {
            format!(
                "{} cannot be indexed with {}",
                overload.argument_types().first().map_or("it", String::as_str),
                overload.argument_types().get(1).map_or("it", String::as_str)
            )
        }
        ExecutionError::NoSuchOverload(overload) => {
            format!(
                "{} does not accept {}",
                function(overload.function()),
                overload.argument_types().join(" and ")
            )
        }
        ExecutionError::UnexpectedType { want, .. } => format!("a value is not of type {}", short(want)),
        ExecutionError::UnsupportedBinaryOperator(name, left, right) => {
            format!("{name} does not accept {} and {}", left.type_of(), right.type_of())
        }
        ExecutionError::ValuesNotComparable(left, right) => {
            format!("{} and {} cannot be compared", left.type_of(), right.type_of())
        }
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "division by zero".to_owned()
        }
        ExecutionError::Overflow(..) => "a number is out of range".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "an index is outside its list".to_owned(),
        ExecutionError::DuplicateKey(_) => "a map has a duplicate key".to_owned(),
        ExecutionError::UnsupportedKeyType(value) => format!("{} cannot be a key", value.type_of()),
        ExecutionError::FunctionError { function: name, .. } => {
            format!("{}() does not accept this value", function(name))
        }
        _ => "it cannot be evaluated".to_owned(),
    }
}
