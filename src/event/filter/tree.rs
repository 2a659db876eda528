//! Inspects and builds parts of the syntax tree of an expression. Pure.

use cel::{
    IdedExpr,
    common::{
        ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators},
        types::{CelInt, CelUInt},
    },
};

use super::{
    json::Node,
    value::{METER, whole},
};

/// For `payload.field == literal` or `literal == payload.field`: the field, and the literal in the form of
/// [`super::Facts::field`].
pub(super) fn equality(part: &IdedExpr) -> Option<(String, String)> {
    let args = |part: &'_ IdedExpr, name: &str| match &part.expr {
        Expr::Call(call) if call.func_name == name && call.target.is_none() => {
            <[IdedExpr; 2]>::try_from(call.args.clone()).ok()
        }
        _ => None,
    };
    let field = |side: &IdedExpr| {
        let [payload, name] = args(side, operators::INDEX)?;
        let Expr::Literal(LiteralValue::String(name)) = name.expr else { return None };
        matches!(&payload.expr, Expr::Ident(variable) if variable == "payload")
            .then(|| name.inner().to_owned())
    };
    let literal = |side: &IdedExpr| {
        let Expr::Literal(literal) = &side.expr else { return None };
        match literal {
            LiteralValue::String(text) => Node::Text(text.inner().into()).as_scalar(),
            LiteralValue::Boolean(value) => Node::Bool(*value.inner()).as_scalar(),
            LiteralValue::Null => Node::Null.as_scalar(),
            // Below 2^53 an integer equals exactly one double.
            LiteralValue::Int(int) if int.inner().unsigned_abs() < 1 << 53 => {
                Node::Number(int.inner().to_string().into()).as_scalar()
            }
            LiteralValue::Int(_)
            | LiteralValue::UInt(_)
            | LiteralValue::Double(_)
            | LiteralValue::Bytes(_) => None,
        }
    };
    let [left, right] = args(part, operators::EQUALS)?;
    field(&left).zip(literal(&right)).or_else(|| field(&right).zip(literal(&left)))
}

/// A literal of a large double as the literal of the integer that it is.
pub(super) fn whole_literal(literal: &LiteralValue) -> Option<LiteralValue> {
    let LiteralValue::Double(double) = literal else { return None };
    let whole = whole(*double.inner())?;
    let int = whole.downcast_ref::<CelInt>().copied().map(LiteralValue::Int);
    int.or_else(|| whole.downcast_ref::<CelUInt>().copied().map(LiteralValue::UInt))
}

/// Whether an expression is a literal or a list of literals, whose size is limited by the source text.
pub(super) fn is_constant(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Literal(_) => true,
        Expr::List(list) => list.elements.iter().all(is_constant),
        _ => false,
    }
}

/// The direct parts of an expression.
fn children(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map
            .entries
            .iter()
            .flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            })
            .collect(),
        Expr::Comprehension(inner) => vec![&inner.iter_range, &inner.loop_step],
        Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) | Expr::Unspecified => Vec::new(),
    }
}

/// Number of parts of an expression, including itself.
pub(super) fn count(expression: &IdedExpr) -> i64 {
    1 + children(expression).into_iter().map(count).sum::<i64>()
}

/// The depth of an expression, and the id of its innermost part that is in the text.
pub(super) fn deepest(expression: &IdedExpr) -> (usize, u64) {
    let inner = children(expression).into_iter().map(deepest).max_by_key(|(depth, _)| *depth);
    let (depth, id) = inner.unwrap_or((0, expression.id));
    (depth + 1, if id == 0 { expression.id } else { id })
}

/// A call that is not in the source text.
pub(super) fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }) }
}

/// The variable of the meter.
pub(super) fn meter() -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Ident(METER.to_owned()) }
}

/// Replaces an expression with a call of a function of the meter for its value.
pub(super) fn wrap(expression: &mut IdedExpr, function: &str) {
    let inner = std::mem::take(expression);
    *expression = IdedExpr { id: inner.id, ..call(function, vec![meter(), inner]) };
}
