//! `/v1`: what operators ask and change, over HTTP. Does what `admin` does and nothing else; has no SQL.
//!
//! Each handler declares its path with `utoipa`. [`Routes`] puts it into the router and into the OpenAPI
//! document at once, so neither has what the other lacks.

mod answer;
mod bulk;
mod dead_letters;
mod deliveries;
mod event_types;
mod events;
mod input;
mod operators;
mod problem;
mod replays;
mod schemas;
mod state;
mod subscriptions;

use std::time::Duration;

use axum::{
    Router,
    extract::Request,
    handler::Handler,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, get, on},
};
use utoipa::{
    __dev::SchemaReferences,
    PartialSchema as _,
    openapi::{
        ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, Paths, Ref,
        RefOr, ResponseBuilder, Schema, SecurityRequirement,
        path::{Operation, OperationBuilder},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

pub use self::{
    answer::MOST,
    events::{LONGEST_WAIT, TRACED},
    input::{LARGEST, LARGEST_EVENT},
    operators::{CONNECTIONS, Operators, WAITERS},
    problem::{Kind, Problem},
};

/// Path of the OpenAPI document.
const DOCUMENT: &str = "/v1/openapi.json";
/// Timeout of a request, a little less than that of any handler, which would name no problem.
const REQUEST: Duration = Duration::from_millis(9_500);

/// The routes of the API and their description.
pub(super) struct Routes {
    router: Router<Operators>,
    paths: Paths,
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl Routes {
    /// Adds a handler at the path that its declaration has.
    fn add<D, H, T>(&mut self, _: D, handler: H)
    where
        D: utoipa::Path + SchemaReferences,
        H: Handler<T, Operators>,
        T: 'static,
    {
        let mut routed = Router::new();
        for method in D::methods() {
            routed = routed.route(&D::path(), on(filter(&method), handler.clone()));
        }
        self.router = std::mem::take(&mut self.router).merge(routed);
        self.paths.add_path_operation(D::path(), D::methods(), with_problems(D::operation()));
        D::schemas(&mut self.schemas);
    }

    fn all() -> Self {
        let mut routes = Self { router: Router::new(), paths: Paths::new(), schemas: Vec::new() };
        state::add(&mut routes);
        subscriptions::add(&mut routes);
        events::add(&mut routes);
        deliveries::add(&mut routes);
        dead_letters::add(&mut routes);
        replays::add(&mut routes);
        event_types::add(&mut routes);
        routes
    }
}

fn filter(method: &HttpMethod) -> MethodFilter {
    match method {
        HttpMethod::Get => MethodFilter::GET,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Delete => MethodFilter::DELETE,
        HttpMethod::Options => MethodFilter::OPTIONS,
        HttpMethod::Head => MethodFilter::HEAD,
        HttpMethod::Patch => MethodFilter::PATCH,
        HttpMethod::Trace => MethodFilter::TRACE,
    }
}

/// Every operation may answer with a problem.
fn with_problems(operation: Operation) -> Operation {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new().description("Why it was not done.");
    let problem = problem.content("application/problem+json", content).build();
    let mut responses = operation.responses.clone();
    responses.responses.insert("default".to_owned(), problem.into());
    OperationBuilder::from(operation).responses(responses).build()
}

/// The OpenAPI document of the API.
#[must_use]
pub fn document() -> OpenApi {
    described(Routes::all()).1
}

fn described(routes: Routes) -> (Router<Operators>, OpenApi) {
    let Routes { router, paths, schemas } = routes;
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .schema("Problem", Problem::schema())
        .security_scheme("token", token)
        .build();
    let info = InfoBuilder::new()
        .title("pgoutbox")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("What operators ask of an outbox and change. See docs/reference/api.md."))
        .build();
    let document = OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("token", [""; 0])]))
        .build();
    (router, document)
}

/// The routes of the API, below `/v1`. The guard has let the request pass.
pub fn router<S: Clone + Send + Sync + 'static>(operators: Operators) -> Router<S> {
    let (router, document) = described(Routes::all());
    let text = document.to_json().unwrap_or_default();
    let answer = move || {
        let text = text.clone();
        async move { (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], text).into_response() }
    };
    router
        .route(DOCUMENT, get(answer))
        .route("/v1/{*rest}", axum::routing::any(nothing_there))
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn(in_time))
        .with_state(operators)
}

async fn nothing_there() -> Problem {
    Problem::new(Kind::NotFound, "there is no such path; /v1/openapi.json has all")
}

async fn not_allowed() -> Problem {
    Problem::new(Kind::MethodNotAllowed, "the path does not allow this method; see the header Allow")
}

/// Ends what takes too long, with its connection.
async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => Problem::new(Kind::Late, "the request took longer than 9.5s").into_response(),
    }
}
