//! `/v1` over real HTTP against a real PostgreSQL. Every answer is compared with the OpenAPI document.

mod document;
mod limits;
mod pages;
mod refusals;
mod resources;

use std::{collections::BTreeSet, net::SocketAddr, sync::Mutex, time::Duration};

use pgoutbox::{
    http::{
        Readiness, Server, Settings, serve,
        v1::{Operators, document},
    },
    relay::telemetry::Telemetry,
};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::support::Database;

/// Deadline of every wait.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Ready;

impl Readiness for Ready {
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn state(&self) -> Value {
        Value::Null
    }
}

/// A server with the API, and a client.
struct Api {
    address: SocketAddr,
    client: reqwest::Client,
    document: Value,
    /// Operations that have answered with success.
    done: Mutex<BTreeSet<String>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// An answer, which fits the document.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: http::HeaderMap,
    body: Value,
}

impl Api {
    /// An API whose login has the rights that the documentation asks for.
    async fn of(database: &Database) -> Self {
        let login = login(database, "outbox_relay, outbox_admin, outbox_publisher").await;
        Self::with(database.options.clone().username(&login)).await
    }

    /// An API with this login.
    async fn with(options: PgConnectOptions) -> Self {
        Self::through(options, false).await
    }

    /// An API with this login, which may take the server for a pooler.
    async fn through(options: PgConnectOptions, pooler: bool) -> Self {
        Self::serving(options, pooler, Settings::default()).await
    }

    async fn serving(options: PgConnectOptions, pooler: bool, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop, tasks) =
            (listener.local_addr().unwrap(), CancellationToken::new(), TaskTracker::new());
        let server = Server {
            settings,
            readiness: Ready,
            telemetry: Telemetry::new(),
            draining: CancellationToken::new(),
            operators: Some(Operators::new(options, pooler, "default".to_owned())),
            room: None,
            clients: TaskTracker::new(),
        };
        tasks.spawn(serve(listener, server, stop.clone()));
        tasks.close();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let document = serde_json::to_value(document()).unwrap();
        Self { address, client, document, done: Mutex::default(), stop, tasks }
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse::<reqwest::Method>().unwrap();
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, self.request("GET", path)).await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, self.request("DELETE", path)).await
    }

    async fn put(&self, path: &str, body: Value) -> Reply {
        self.with_body("PUT", path, body.to_string()).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.with_body("POST", path, body.to_string()).await
    }

    /// POST without a body.
    async fn call(&self, path: &str) -> Reply {
        self.send("POST", path, self.request("POST", path)).await
    }

    async fn with_body(&self, method: &str, path: &str, body: String) -> Reply {
        let request = self.request(method, path).header("content-type", "application/json");
        self.send(method, path, request.body(body)).await
    }

    async fn send(&self, method: &str, path: &str, request: reqwest::RequestBuilder) -> Reply {
        let answer = timeout(DEADLINE, request.send()).await.expect("an answer").unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: {text}"));
        let reply = Reply { status, headers, body };
        self.check(method, path, &reply);
        reply
    }

    /// Compares an answer with the document.
    fn check(&self, method: &str, path: &str, reply: &Reply) {
        let kind = reply.headers["content-type"].to_str().unwrap();
        let path = path.split('?').next().unwrap();
        let schema = match self.template(path).filter(|at| !self.operation(method, at).is_null()) {
            Some(at) => {
                let responses = &self.operation(method, &at)["responses"];
                let response = responses.get(reply.status.to_string()).unwrap_or(&responses["default"]);
                if reply.status < 300 {
                    self.done.lock().unwrap().insert(format!("{method} {at}"));
                }
                response["content"][kind]["schema"].clone()
            }
            None => json!({ "$ref": "#/components/schemas/Problem" }),
        };
        assert!(schema.is_object(), "{method} {path}: {kind} of {} is documented", reply.status);
        assert_eq!(kind, if reply.status < 300 { "application/json" } else { "application/problem+json" });
        let whole = json!({ "components": self.strict_components(), "allOf": [schema] });
        let validator = jsonschema::validator_for(&whole).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&reply.body)
            .map(|error| format!("{} {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{method} {path}: {wrong:#?} in {:#}", reply.body);
        if reply.status >= 300 {
            assert_eq!(reply.body["status"], reply.status, "{:#}", reply.body);
        }
    }

    fn operation(&self, method: &str, template: &str) -> &Value {
        &self.document["paths"][template][method.to_lowercase()]
    }

    /// The path of the document that a path is of; one without parameters wins.
    fn template(&self, path: &str) -> Option<String> {
        let parts: Vec<&str> = path.split('/').collect();
        let fits = |template: &&String| {
            let own: Vec<&str> = template.split('/').collect();
            own.len() == parts.len()
                && own.iter().zip(&parts).all(|(own, part)| own.starts_with('{') || own == part)
        };
        let paths = self.document["paths"].as_object().unwrap();
        paths.keys().filter(fits).min_by_key(|template| template.matches('{').count()).cloned()
    }

    /// The schemas, where an object has no field that is not documented.
    fn strict_components(&self) -> Value {
        let mut components = self.document["components"].clone();
        let text = components.to_string();
        let schemas = components["schemas"].as_object_mut().unwrap();
        for (name, schema) in schemas {
            let is_part = text.contains(&format!("\"allOf\":[{{\"$ref\":\"#/components/schemas/{name}\""));
            if let (Some(fields), false) = (schema.as_object_mut(), is_part) {
                let word = if fields.contains_key("allOf") {
                    "unevaluatedProperties"
                } else {
                    "additionalProperties"
                };
                if fields.contains_key("allOf") || fields.contains_key("properties") {
                    fields.insert(word.to_owned(), json!(false));
                }
            }
        }
        components
    }

    /// Asserts that each of these operations has answered with success.
    fn assert_done(&self, operations: &[&str]) {
        let done = self.done.lock().unwrap();
        let missing: Vec<_> = operations.iter().filter(|one| !done.contains(**one)).collect();
        assert!(missing.is_empty(), "{missing:?} never answered with success");
    }

    async fn close(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.tasks.wait()).await.expect("the server is stopped");
    }
}

impl Reply {
    /// The body, if the status is this one.
    #[track_caller]
    fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        self.body
    }

    /// The problem's code and its field.
    #[track_caller]
    fn problem(&self, status: u16) -> (&str, Option<&str>) {
        assert_eq!(self.status, status, "{:#}", self.body);
        let code = self.body["type"].as_str().unwrap().strip_prefix("/problems/").unwrap();
        (code, self.body["field"].as_str())
    }
}

/// A login that is a member of these groups.
async fn login(database: &Database, groups: &str) -> String {
    let login = format!("api_{}", Uuid::new_v4().simple());
    database.execute(format!("create role {login} login in role {groups}")).await;
    login
}
