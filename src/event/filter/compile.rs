//! Compiles text into an expression that is safe to run: parses it, checks its names, meters its work. Pure.
//!
//! The CEL crate has no limit of its own. So the tree is rewritten before it runs: each operation that copies
//! or walks values first takes their weight from a meter. The work of an expression is then bounded for every
//! payload, and the same on every machine.

use std::sync::Arc;

use cel::{
    IdedExpr,
    common::{
        ast::{ComprehensionExpr, EntryExpr, Expr, LiteralValue, SourceInfo, operators},
        types::{CelInt, CelString},
    },
};
use regex::{Regex, RegexBuilder};

use super::{
    Invalid, LONGEST,
    meter::{ADD, CUT, ENV, EXACT, FIND, MATCHES, RANGE, WEIGH},
    names::{EVENT, FIELDS, FUNCTIONS, TYPES, WALKERS},
    tree::{call, count, deepest, is_constant, meter, whole_literal, wrap},
    value::{VARIABLES, whole},
};

/// Deepest nesting of an expression, in levels, including the calls of the meter. Evaluation is recursive and
/// takes up to 40 KiB of stack a level in a debug build.
const DEEPEST: usize = 32;
/// Size of a compiled regular expression, in bytes. It also bounds the time for each byte of text.
const LARGEST_REGEX: usize = 256 * 1024;
/// Regular expressions in one expression.
const MOST_PATTERNS: usize = 20;
/// Operators that compare their sides.
const COMPARISONS: [&str; 7] = [
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::LESS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    operators::IN,
];
/// Operations whose result may be a large double, which no field of an event is.
const COMPUTING: [&str; 8] = [
    ADD,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::NEGATE,
    operators::CONDITIONAL,
    "double",
    "dyn",
];
/// Stack of the parser, in bytes. Parsing is recursive, and the depth is not known before.
const STACK: usize = 64 * 1024 * 1024;

/// A checked and metered expression.
#[derive(Debug)]
pub(super) struct Compiled {
    /// The parts of a conjunction; other expressions have one part.
    pub(super) parts: Vec<IdedExpr>,
    pub(super) patterns: Arc<[Regex]>,
    pub(super) needs_payload: bool,
    /// Whether its value is the map of `event({…})` instead of a payload.
    pub(super) gives_fields: bool,
}

/// The purpose of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Filter,
    Transform,
}

/// Parses and checks an expression.
///
/// # Errors
/// The first mistake, with its place.
pub(super) fn compile(text: &str, used_as: Use) -> Result<Compiled, Invalid> {
    if text.trim().is_empty() {
        return Err(Invalid::at_start("it is empty"));
    }
    if text.len() > LONGEST {
        return Err(Invalid::at_start(format!("it has {} bytes; at most {LONGEST}", text.len())));
    }
    // Its own thread has enough stack, and contains a panic of the parser.
    std::thread::scope(|scope| {
        let compiling =
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || compile_here(text, used_as));
        match compiling.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) => Err(Invalid::at_start("it makes the parser panic")),
            Err(error) => Err(Invalid::at_start(format!("cannot start a thread to parse it: {error}"))),
        }
    })
}

fn compile_here(text: &str, used_as: Use) -> Result<Compiled, Invalid> {
    let (root, source) = ENV.parser().parse_with_source_info(text).map_err(|errors| {
        let first = errors.errors.into_iter().next();
        first.map_or_else(
            || Invalid::at_start("it cannot be parsed"),
            |error| Invalid {
                line: usize::try_from(error.pos.0).unwrap_or(1).max(1),
                column: usize::try_from(error.pos.1).unwrap_or(1).max(1),
                why: error.msg,
            },
        )
    })?;
    let mut parts = Vec::new();
    let mut checker = Checker {
        text,
        source: &source,
        used_as,
        scope: Vec::new(),
        patterns: Vec::new(),
        needs_payload: false,
    };
    let mut gives_fields = false;
    match (used_as, root) {
        (Use::Filter, root) => flatten(root, &mut parts),
        (Use::Transform, IdedExpr { id, expr: Expr::Call(call) })
            if call.func_name == EVENT && call.target.is_none() =>
        {
            gives_fields = true;
            parts.push(checker.fields(id, call.args)?);
        }
        (Use::Transform, root) => parts.push(root),
    }
    for part in &mut parts {
        checker.check(part)?;
        let (depth, id) = deepest(part);
        if depth > DEEPEST {
            return Err(checker.invalid(id, "it is nested too deeply"));
        }
    }
    let Checker { patterns, needs_payload, .. } = checker;
    Ok(Compiled { parts, patterns: patterns.into(), needs_payload, gives_fields })
}

/// Collects the parts of `a && b && c`, in order.
fn flatten(mut expression: IdedExpr, parts: &mut Vec<IdedExpr>) {
    match &mut expression.expr {
        Expr::Call(call)
            if call.func_name == operators::LOGICAL_AND && call.target.is_none() && call.args.len() == 2 =>
        {
            for part in std::mem::take(&mut call.args) {
                flatten(part, parts);
            }
        }
        _ => parts.push(expression),
    }
}

struct Checker<'t> {
    text: &'t str,
    source: &'t SourceInfo,
    used_as: Use,
    /// Variables of the enclosing macros.
    scope: Vec<String>,
    patterns: Vec<Regex>,
    needs_payload: bool,
}

impl Checker<'_> {
    fn invalid(&self, id: u64, why: impl Into<String>) -> Invalid {
        let offset = self.source.offset_for(id).map_or(0, |(start, _)| start as usize);
        let before: String = self.text.chars().take(offset).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Invalid { line, column, why: why.into() }
    }

    fn check(&mut self, expression: &mut IdedExpr) -> Result<(), Invalid> {
        let id = expression.id;
        match &mut expression.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                let name = name.trim_start_matches('.');
                if self.scope.iter().any(|known| known == name)
                    || TYPES.contains(&name)
                    || name.starts_with('@')
                {
                    return Ok(());
                }
                if !VARIABLES.contains(&name) {
                    return Err(self.invalid(
                        id,
                        format!("there is no variable {name:?}; there are {}", VARIABLES.join(", ")),
                    ));
                }
                self.needs_payload |= name == "payload";
                Ok(())
            }
            Expr::Select(select) if select.test => self.check(&mut select.operand),
            // The interpreter first tries `a.b` as one name with a dot. We have no such names, so this
            // becomes an index.
            Expr::Select(select) => {
                self.check(&mut select.operand)?;
                let operand = std::mem::take(&mut *select.operand);
                let field = LiteralValue::String(CelString::from(std::mem::take(&mut select.field)));
                *expression = IdedExpr {
                    id,
                    ..call(operators::INDEX, vec![operand, IdedExpr { id, expr: Expr::Literal(field) }])
                };
                Ok(())
            }
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.check_copied(element)),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.check(&mut entry.key)?;
                    self.check_copied(&mut entry.value)
                }
                EntryExpr::StructField(_) => {
                    Err(self.invalid(id, "messages are not supported; write a map: {\"name\": value}"))
                }
            }),
            Expr::Comprehension(comprehension) => self.check_comprehension(comprehension),
            Expr::Call(_) => self.check_call(expression),
            Expr::Struct(_) => {
                Err(self.invalid(id, "messages are not supported; write a map: {\"name\": value}"))
            }
            Expr::Unspecified => Err(self.invalid(id, "it cannot be parsed")),
        }
    }

    /// Checks an expression whose value is copied into a new list or map, and meters the copy.
    fn check_copied(&mut self, expression: &mut IdedExpr) -> Result<(), Invalid> {
        self.check(expression)?;
        if !matches!(expression.expr, Expr::Literal(_)) {
            wrap(expression, WEIGH);
        }
        Ok(())
    }

    fn check_comprehension(&mut self, comprehension: &mut ComprehensionExpr) -> Result<(), Invalid> {
        let ComprehensionExpr { iter_range, iter_var, loop_step, .. } = comprehension;
        self.check(iter_range)?;
        self.scope.push(iter_var.clone());
        let checked = self.check_step(loop_step);
        self.scope.pop();
        checked?;
        let parts = LiteralValue::Int(CelInt::from(count(loop_step)));
        let range = std::mem::take(iter_range);
        *iter_range = call(RANGE, vec![meter(), range, IdedExpr { id: 0, expr: Expr::Literal(parts) }]);
        Ok(())
    }

    /// Checks a macro's step without changing the parts the macro generated: the interpreter recognizes their
    /// shape.
    fn check_step(&mut self, step: &mut IdedExpr) -> Result<(), Invalid> {
        let is_own = |part: &IdedExpr| matches!(&part.expr, Expr::Ident(name) if name.starts_with('@'));
        let Expr::Call(call) = &mut step.expr else { return self.check(step) };
        match call.args.as_mut_slice() {
            [condition, step, otherwise] if call.func_name == operators::CONDITIONAL && is_own(otherwise) => {
                self.check(condition)?;
                self.check_step(step)
            }
            [result, part] if is_own(result) => self.check(part),
            _ => self.check(step),
        }
    }

    fn check_call(&mut self, expression: &mut IdedExpr) -> Result<(), Invalid> {
        let id = expression.id;
        let Expr::Call(call) = &mut expression.expr else { return Ok(()) };
        let name = call.func_name.clone();
        if name == EVENT {
            let why = match self.used_as {
                Use::Filter => "event() can only be used in transforms",
                Use::Transform => {
                    "event() must be the whole transform; put conditions inside: \
                     event({\"payload\": a ? b : c})"
                }
            };
            return Err(self.invalid(id, why));
        }
        let is_operator = !name.starts_with(|first: char| first.is_ascii_alphabetic());
        if !is_operator && !FUNCTIONS.contains(&name.as_str()) {
            return Err(self
                .invalid(id, format!("there is no function {name}(); there are {}", FUNCTIONS.join(", "))));
        }
        for part in call.target.as_deref_mut().into_iter().chain(&mut call.args) {
            self.check(part)?;
        }
        if COMPARISONS.contains(&name.as_str()) {
            call.args.iter_mut().for_each(make_exact);
        }
        let is_literal = |part: &IdedExpr| matches!(part.expr, Expr::Literal(_));
        match (name.as_str(), call.args.as_mut_slice()) {
            (operators::ADD, [_, _]) => {
                call.args.insert(0, meter());
                ADD.clone_into(&mut call.func_name);
            }
            (operators::EQUALS | operators::NOT_EQUALS, [left, right])
                if !is_literal(left) && !is_literal(right) =>
            {
                wrap(left, WEIGH)
            }
            (operators::IN, [_, list]) if !is_constant(list) => wrap(list, FIND),
            ("matches", _) => {
                let mut args: Vec<IdedExpr> = call
                    .target
                    .take()
                    .map(|target| *target)
                    .into_iter()
                    .chain(std::mem::take(&mut call.args))
                    .collect();
                let (Some(pattern), Some(text), None) = (args.pop(), args.pop(), args.pop()) else {
                    return Err(
                        self.invalid(id, "matches() takes a text and a pattern: topic.matches(\"^shop\")")
                    );
                };
                let Expr::Literal(LiteralValue::String(source)) = &pattern.expr else {
                    return Err(self.invalid(pattern.id, "the pattern of matches() must be a literal"));
                };
                let number = self.pattern(source.inner()).map_err(|why| self.invalid(pattern.id, why))?;
                call.args = vec![
                    meter(),
                    text,
                    IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Int(CelInt::from(number))) },
                ];
                MATCHES.clone_into(&mut call.func_name);
            }
            (name, _) if WALKERS.contains(&name) => {
                let work = if name == "split" { CUT } else { WEIGH };
                if let Some(walked) =
                    call.target.as_deref_mut().or(call.args.first_mut()).filter(|walked| !is_literal(walked))
                {
                    wrap(walked, work);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn pattern(&mut self, source: &str) -> Result<i64, String> {
        if self.patterns.len() >= MOST_PATTERNS {
            return Err(format!("there are more than {MOST_PATTERNS} regular expressions"));
        }
        let built = RegexBuilder::new(source).size_limit(LARGEST_REGEX).dfa_size_limit(LARGEST_REGEX).build();
        let regex = built.map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
            // The last line is the message; the lines before it draw the place.
            other => {
                format!(
                    "invalid regular expression: {}",
                    other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ")
                )
            }
        })?;
        self.patterns.push(regex);
        i64::try_from(self.patterns.len() - 1)
            .map_err(|_| "there are too many regular expressions".to_owned())
    }

    /// Checks the arguments of `event(…)`: one map, with known fields.
    fn fields(&self, id: u64, args: Vec<IdedExpr>) -> Result<IdedExpr, Invalid> {
        let [fields] = <[IdedExpr; 1]>::try_from(args).map_err(|_| {
            self.invalid(id, "event() takes one map: event({\"payload\": payload, \"key\": key})")
        })?;
        if let Expr::Map(map) = &fields.expr {
            for entry in &map.entries {
                let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                let Expr::Literal(LiteralValue::String(name)) = &entry.key.expr else { continue };
                if !FIELDS.contains(&name.inner()) {
                    return Err(self.invalid(
                        entry.key.id,
                        format!("event() has no field {:?}; it has {}", name.inner(), FIELDS.join(", ")),
                    ));
                }
            }
        }
        Ok(fields)
    }
}

/// Makes one side of a comparison exact: large doubles are the integers that they are.
fn make_exact(side: &mut IdedExpr) {
    match &mut side.expr {
        Expr::Literal(literal) => match whole_literal(literal) {
            Some(whole) => *literal = whole,
            None => {
                // 2^64 is an integer that the language has no literal for.
                let LiteralValue::Double(double) = literal else { return };
                if whole(*double.inner()).is_some() {
                    wrap(side, EXACT);
                }
            }
        },
        Expr::List(list) => list.elements.iter_mut().for_each(make_exact),
        Expr::Call(call) if COMPUTING.contains(&call.func_name.as_str()) => wrap(side, EXACT),
        _ => {}
    }
}
