//! The calls that the compiler inserts into expressions to meter work before values are copied or walked.
//! Pure.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use cel::{
    Env, ExecutionError,
    common::{
        ast::operators,
        types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelString, DYN_TYPE},
        value::{CowVal, Val},
    },
    extensions,
};

use super::value::{METER, MOST_WORK, Meter, weight, whole};

/// Replaces `a + b`.
pub(super) const ADD: &str = "@add";
/// Takes the cost of a value about to be copied, compared or walked.
pub(super) const WEIGH: &str = "@weigh";
/// A number about to be compared: see [`whole`].
pub(super) const EXACT: &str = "@exact";
/// Takes the cost of a text about to be split.
pub(super) const CUT: &str = "@cut";
/// Takes the cost of searching the right side of `in`.
pub(super) const FIND: &str = "@find";
/// Takes the cost of iterating over the range of a macro.
pub(super) const RANGE: &str = "@range";
/// Replaces `matches`; takes the index of the compiled regular expression.
pub(super) const MATCHES: &str = "@matches";

/// The functions that expressions can call. All expressions share it; it never changes.
pub(super) static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    let added = [
        extensions::strings(&mut env),
        env.add_overload(ADD, ADD, vec![DYN_TYPE, DYN_TYPE, DYN_TYPE], add),
        env.add_overload(WEIGH, WEIGH, vec![DYN_TYPE, DYN_TYPE], weigh),
        env.add_overload(EXACT, EXACT, vec![DYN_TYPE, DYN_TYPE], exact),
        env.add_overload(CUT, CUT, vec![DYN_TYPE, DYN_TYPE], cut),
        env.add_overload(FIND, FIND, vec![DYN_TYPE, DYN_TYPE], find),
        env.add_overload(RANGE, RANGE, vec![DYN_TYPE, DYN_TYPE, DYN_TYPE], range),
        env.add_overload(MATCHES, MATCHES, vec![DYN_TYPE, DYN_TYPE, DYN_TYPE], matches),
    ];
    debug_assert!(added.iter().all(Result::is_ok), "no two overloads have one name");
    Arc::new(env)
});

type Arguments<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// Takes `cost` from the meter. A macro may swallow the error and go on, so a spent meter no longer computes
/// costs.
fn take(meter: &CowVal<'_, '_>, cost: impl FnOnce() -> i64) -> Result<(), ExecutionError> {
    match meter.downcast_ref::<Meter>() {
        Some(meter) if !meter.is_spent() && meter.take(cost()) => Ok(()),
        _ => Err(ExecutionError::function_error(METER, "it exceeds the work limit of one event")),
    }
}

fn two<'b, 'v>(arguments: Arguments<'b, 'v>) -> Result<[CowVal<'b, 'v>; 2], ExecutionError> {
    <[CowVal<'b, 'v>; 2]>::try_from(arguments)
        .map_err(|all| ExecutionError::invalid_argument_count(2, all.len()))
}

fn three<'b, 'v>(arguments: Arguments<'b, 'v>) -> Result<[CowVal<'b, 'v>; 3], ExecutionError> {
    <[CowVal<'b, 'v>; 3]>::try_from(arguments)
        .map_err(|all| ExecutionError::invalid_argument_count(3, all.len()))
}

fn add<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [meter, left, right] = three(arguments)?;
    take(&meter, || weight(left.as_ref()) + weight(right.as_ref()))?;
    let types = || {
        ExecutionError::no_such_overload(
            operators::ADD,
            vec![left.get_type().name().to_owned(), right.get_type().name().to_owned()],
        )
    };
    let sum = left.as_adder().ok_or_else(types)?.add(right.as_ref()).map_err(|error| match error {
        ExecutionError::Overflow(..) => error,
        _ => types(),
    })?;
    Ok(CowVal::Owned(sum.into_owned()))
}

fn weigh<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [meter, value] = two(arguments)?;
    take(&meter, || weight(value.as_ref()))?;
    Ok(value)
}

fn exact<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [_, value] = two(arguments)?;
    let exact = value.downcast_ref::<CelDouble>().and_then(|double| whole(*double.inner()));
    Ok(exact.map_or(value, CowVal::Owned))
}

/// Each byte of the text may become a string of its own.
fn cut<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [meter, value] = two(arguments)?;
    let bytes = value.downcast_ref::<CelString>().map_or(0, |text| text.inner().len());
    take(&meter, || 1 + i64::try_from(bytes / 4).unwrap_or(MOST_WORK))?;
    Ok(value)
}

/// A list may be searched completely; a map takes one lookup.
fn find<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [meter, value] = two(arguments)?;
    take(&meter, || if value.downcast_ref::<CelMap>().is_some() { 1 } else { weight(value.as_ref()) })?;
    Ok(value)
}

/// The range of a macro: a list unchanged, or the keys of a map in order.
fn range<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [meter, value, parts] = three(arguments)?;
    let parts = parts.downcast_ref::<CelInt>().map_or(MOST_WORK, |parts| *parts.inner());
    if let Some(list) = value.downcast_ref::<CelList>() {
        let rounds = i64::try_from(list.inner().len()).unwrap_or(MOST_WORK);
        take(&meter, || weight(value.as_ref()).saturating_add(rounds.saturating_mul(parts)))?;
        return Ok(value);
    }
    let Some(map) = value.downcast_ref::<CelMap>() else {
        return Err(ExecutionError::no_such_overload("a macro", vec![value.get_type().name().to_owned()]));
    };
    let rounds = i64::try_from(map.inner().len()).unwrap_or(MOST_WORK);
    take(&meter, || rounds.saturating_mul(parts.saturating_add(8)))?;
    let keys: BTreeSet<&CelMapKey<'v>> = map.inner().keys().collect();
    let keys: Vec<Box<dyn Val + 'v>> = keys.into_iter().map(|key| key_of(key)).collect();
    Ok(CowVal::owned(CelList::from(keys)))
}

fn key_of<'v>(key: &CelMapKey<'v>) -> Box<dyn Val + 'v> {
    match key.clone() {
        CelMapKey::Bool(key) => Box::new(key),
        CelMapKey::Int(key) => Box::new(key),
        CelMapKey::UInt(key) => Box::new(key),
        CelMapKey::String(key) => Box::new(key),
    }
}

fn matches<'b, 'v>(arguments: Arguments<'b, 'v>) -> Outcome<'b, 'v> {
    let [meter, text, number] = three(arguments)?;
    let Some(text) = text.downcast_ref::<CelString>() else {
        return Err(ExecutionError::no_such_member_overload(
            "matches",
            vec![text.get_type().name().to_owned(), "string".to_owned()],
        ));
    };
    // The work for each byte is bounded by the size of the compiled pattern.
    take(&meter, || 1 + i64::try_from(text.inner().len() / 4).unwrap_or(MOST_WORK))?;
    let pattern = meter
        .downcast_ref::<Meter>()
        .zip(number.downcast_ref::<CelInt>())
        .and_then(|(meter, number)| meter.patterns.get(usize::try_from(*number.inner()).ok()?));
    Ok(CowVal::owned(CelBool::from(pattern.is_some_and(|pattern| pattern.is_match(text.inner())))))
}
