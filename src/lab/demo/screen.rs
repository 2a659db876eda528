//! The output of the demo: a screen of 80 by 24 on a terminal, plain lines elsewhere. Coloured unless
//! `NO_COLOR` is set.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
};

use super::{
    ledger::{ACCOUNTING, Ledger, PLANS, Plan, WAREHOUSE},
    page,
    status::Status,
};

const WIDTH: usize = 80;
const HEIGHT: usize = 24;

/// Prints a line to standard output. Ignores errors: the demo continues if its output is closed.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// The state to show.
#[derive(Debug)]
pub(super) struct Picture<'a> {
    pub(super) seconds: u64,
    pub(super) ledger: &'a Ledger,
    pub(super) status: &'a [Status],
    pub(super) warehouse_back_in: Option<u64>,
    pub(super) url: &'a str,
    pub(super) new_url: &'a str,
    pub(super) http: Option<SocketAddr>,
}

/// Style of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Title,
    Good,
    Bad,
    Faint,
}

/// The terminal. Dropping it restores its state.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    colours: bool,
}

impl Screen {
    pub(super) fn open() -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if terminal {
            write("\x1b[?1049h\x1b[?25l\x1b[2J"); // alternate screen, no cursor, cleared
        }
        Self { terminal, colours }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(super) fn show(&mut self, picture: &Picture<'_>) {
        if !self.terminal {
            say(&picture.line());
            return;
        }
        let mut text = String::from("\x1b[H");
        for (index, (look, line)) in picture.lines().into_iter().take(HEIGHT).enumerate() {
            // No newline after the last line: it would scroll.
            text.push_str(if index > 0 { "\r\n" } else { "" });
            text.push_str(&styled(look, &clip(&line), self.colours));
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(&text);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            write("\x1b[?25h\x1b[?1049l");
        }
    }
}

fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Cuts a line to the width of the screen and removes control characters.
fn clip(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(WIDTH).collect()
}

fn styled(look: Look, line: &str, colours: bool) -> String {
    let code = match look {
        _ if !colours => return line.to_owned(),
        Look::Plain => return line.to_owned(),
        Look::Title => 1,
        Look::Good => 32,
        Look::Bad => 31,
        Look::Faint => 2,
    };
    format!("\x1b[{code}m{line}\x1b[0m")
}

/// A row of the table of subscriptions. Leaves nine columns for a remark.
fn row(name: &str, wants: &str, [delivered, refused, backlog, retrying, dead]: [String; 5]) -> String {
    format!("{name:<11} {wants:<19} {delivered:>9} {refused:>7} {backlog:>7} {retrying:>8} {dead:>4}")
}

impl Picture<'_> {
    fn of(&self, plan: Plan) -> Option<&Status> {
        self.status.iter().find(|status| status.name == plan.name)
    }

    /// The state as one line.
    fn line(&self) -> String {
        let (committed, rolled_back) = (self.ledger.committed().len(), self.ledger.rolled_back());
        let mut line = format!("{} s: {committed} committed, {rolled_back} rolled back", self.seconds);
        for plan in PLANS {
            let (backlog, dead) =
                self.of(plan).map_or((0, 0), |status| (status.backlog, status.dead_letters));
            line.push_str(&format!(
                "; {} {} delivered, {backlog} pending",
                plan.name,
                self.ledger.delivered(plan)
            ));
            line.push_str(&if dead > 0 { format!(", {dead} dead letters") } else { String::new() });
        }
        line
    }

    fn lines(&self) -> Vec<(Look, String)> {
        let ledger = self.ledger;
        let mut lines = vec![
            (
                Look::Title,
                format!(
                    "pgoutbox demo{:>42}{:>3}:{:02}   Ctrl-C to stop",
                    "",
                    self.seconds / 60,
                    self.seconds % 60
                ),
            ),
            (
                Look::Plain,
                format!(
                    "the shop: {} events committed, {} rolled back",
                    ledger.committed().len(),
                    ledger.rolled_back()
                ),
            ),
            (Look::Faint, format!("  {}", ledger.last_action)),
            (
                Look::Title,
                row("", "wants", ["delivered", "refused", "backlog", "retrying", "dead"].map(str::to_owned)),
            ),
        ];
        for plan in PLANS {
            lines.push(self.subscription(plan));
        }
        lines.push((Look::Title, "arriving".to_owned()));
        let arriving = ledger.latest().map(|arrival| {
            let end = arrival.id.get(arrival.id.len().saturating_sub(12)..).unwrap_or_default();
            let look = if arrival.answered < 300 { Look::Good } else { Look::Bad };
            let signature =
                if arrival.verified == Some(true) { "signature valid" } else { "signature INVALID" };
            (
                look,
                format!(
                    "  {:<12}  {:<20} …{end}  {signature}  {}",
                    arrival.subscription, arrival.topic, arrival.answered
                ),
            )
        });
        lines.extend(arriving.chain(std::iter::repeat((Look::Plain, String::new()))).take(6));
        let refused = ledger.delivered(ACCOUNTING) == 0;
        let advice = if refused {
            "accounting's address is wrong: change it and redrive"
        } else {
            "accounting has its new address"
        };
        lines.push((Look::Title, format!("{advice}; in a second terminal:")));
        lines.push((Look::Plain, format!("  psql \"{}\"", self.url)));
        lines.push((
            Look::Plain,
            "    update outbox.subscriptions set config = jsonb_set(config, '{url}',".to_owned(),
        ));
        lines.push((Look::Plain, format!("      '\"{}\"') where name = 'accounting';", self.new_url)));
        lines.push((Look::Plain, "    select outbox.redrive('accounting');".to_owned()));
        lines.push((Look::Plain, "    select * from outbox.subscription_status;".to_owned()));
        if let Some(http) = self.http {
            lines.push((Look::Title, format!("the orders, live, in a browser: http://{http}{}", page::PATH)));
            lines.push((Look::Plain, format!("  curl http://{http}/metrics")));
        }
        lines
    }

    fn subscription(&self, plan: Plan) -> (Look, String) {
        let ledger = self.ledger;
        let Some(status) = self.of(plan) else {
            return (Look::Bad, format!("{:<13} no longer subscribed", plan.name));
        };
        let figures = [status.backlog, status.retrying, status.dead_letters].map(|figure| figure.to_string());
        let [backlog, retrying, dead] = figures;
        let mut line = row(
            plan.name,
            plan.pattern,
            [ledger.delivered(plan).to_string(), ledger.refused(plan).to_string(), backlog, retrying, dead],
        );
        let mut bad = status.dead_letters > 0;
        let remark = match self.warehouse_back_in {
            Some(seconds) if plan == WAREHOUSE => format!(" 503 {seconds}s"),
            _ if status.state != "ok" => format!(" {}", status.state),
            _ if status.breaker != "closed" => " breaker".to_owned(),
            _ => String::new(),
        };
        bad |= !remark.is_empty();
        line.push_str(&remark);
        (if bad { Look::Bad } else { Look::Good }, line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_fits_on_the_screen() {
        let status: Vec<Status> = PLANS
            .iter()
            .map(|plan| Status {
                name: plan.name.to_owned(),
                backlog: 1_234,
                retrying: 1_234,
                dead_letters: 123,
                state: "ok".to_owned(),
                breaker: "half_open".to_owned(),
            })
            .collect();
        let picture = Picture {
            seconds: 754,
            ledger: &Ledger::default(),
            status: &status,
            warehouse_back_in: Some(8),
            url: "postgres://postgres@127.0.0.1:31999/shop?sslmode=disable",
            new_url: "http://127.0.0.1:60999/",
            http: Some(([127, 0, 0, 1], 60_999).into()),
        };
        let lines = picture.lines();
        assert!(lines.len() <= HEIGHT, "{} lines", lines.len());
        for (_, line) in lines {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn received_text_cannot_move_the_cursor() {
        assert_eq!(clip("a\x1b[2Jb\n"), "a[2Jb");
        assert_eq!(clip(&"x".repeat(200)).len(), WIDTH);
        assert_eq!(styled(Look::Bad, "no", false), "no");
    }
}
