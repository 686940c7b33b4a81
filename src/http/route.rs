//! From a route to a handler and back: reads the body within its limit and time, checks it strictly, finds out who
//! is calling, decodes the ruma request and encodes the ruma answer. Knows no endpoint.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::RawPathParams,
    response::Response,
    routing::{MethodFilter, on},
};
use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::BodyExt as _;
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _, OutgoingResponseExt as _,
    auth_scheme::{
        AccessToken, AccessTokenOptional, AppserviceToken, AppserviceTokenOptional, NoAccessToken,
        NoAuthentication,
    },
    error::{DeserializationError, FromHttpRequestError},
    path_builder::PathBuilder as _,
};

use super::{
    caller::{self, Asker, Peer, Requester},
    json, reply,
};
use crate::{
    error::{Code, Error, Result, invalid, refuse},
    server::Server,
};

/// Who may call an endpoint, as the type that its handler gets: an authenticated handler holds a [`Requester`],
/// never an `Option`.
pub trait Caller: Sized + Send + 'static {
    /// Finds out who is calling, or refuses.
    fn find(server: &Arc<Server>, parts: &http::request::Parts) -> impl Future<Output = Result<Self>> + Send;
}

impl Caller for Requester {
    async fn find(server: &Arc<Server>, parts: &http::request::Parts) -> Result<Self> {
        caller::requester(server, parts).await
    }
}

impl Caller for Peer {
    async fn find(_: &Arc<Server>, parts: &http::request::Parts) -> Result<Self> {
        caller::peer(parts)
    }
}

impl Caller for Asker {
    async fn find(server: &Arc<Server>, parts: &http::request::Parts) -> Result<Self> {
        if parts.headers.contains_key(header::AUTHORIZATION) {
            caller::requester(server, parts).await.map(Self::Known)
        } else {
            caller::without_token(server, parts).map(Self::Unknown)
        }
    }
}

/// Which caller type fits a specification's authentication; checked when the router is built.
pub trait Accepts<C> {}
impl Accepts<Requester> for AccessToken {}
impl Accepts<Requester> for AccessTokenOptional {}
impl Accepts<Peer> for AccessTokenOptional {}
impl Accepts<Asker> for AccessTokenOptional {}
impl Accepts<Requester> for AppserviceToken {}
impl Accepts<Requester> for AppserviceTokenOptional {}
impl Accepts<Peer> for AppserviceTokenOptional {}
impl Accepts<Peer> for NoAccessToken {}
impl Accepts<Requester> for NoAccessToken {}
impl Accepts<Peer> for NoAuthentication {}

/// The routes of one listener.
pub struct Routes {
    router: Router<Arc<Server>>,
    /// Every (method, path template), for the tests that go through all of them.
    pub table: Vec<(http::Method, &'static str)>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }
}

/// What a body must be like before ruma decodes it. For requests whose decoding panics on another shape, and for what the
/// specification refuses by a code of its own.
pub type Shape = fn(&serde_json::Map<String, serde_json::Value>) -> Result<()>;

/// A handler's answer.
pub enum Answer {
    /// JSON text.
    Json(String),
    /// Anything else.
    Response(Response),
}

impl Answer {
    /// A JSON value.
    pub fn value(value: &serde_json::Value) -> Self {
        Self::Json(value.to_string())
    }
}

impl From<serde_json::Value> for Answer {
    fn from(value: serde_json::Value) -> Self {
        Self::Json(value.to_string())
    }
}

impl Routes {
    /// An endpoint that ruma knows: its paths, method, request and response.
    #[must_use]
    pub fn endpoint<R, C, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Accepts<C>,
        C: Caller,
        F: Fn(Arc<Server>, C, R) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        self.encoded::<R, C, _, _>(None, handler)
    }

    /// As [`Routes::endpoint`], for a body that is looked at first.
    #[must_use]
    pub fn checked<R, C, F, Fut>(self, shape: Shape, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Accepts<C>,
        C: Caller,
        F: Fn(Arc<Server>, C, R) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        self.encoded::<R, C, _, _>(Some(shape), handler)
    }

    fn encoded<R, C, F, Fut>(self, shape: Option<Shape>, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        C: Caller,
        F: Fn(Arc<Server>, C, R) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        self.ruma::<R, C, _, _>(shape, move |server, caller, request| {
            let answered = handler(server, caller, request);
            async move {
                let response = answered
                    .await?
                    .try_into_http_response::<BytesMut>()
                    .map_err(|error| Error::internal(error.to_string()))?;
                Ok(Answer::Response(response.map(|body| Body::from(body.freeze()))))
            }
        })
    }

    /// An endpoint that ruma can read and that writes its own answer.
    #[must_use]
    pub fn raw<R, C, F, Fut>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Accepts<C>,
        C: Caller,
        F: Fn(Arc<Server>, C, R) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer>> + Send,
    {
        self.ruma::<R, C, _, _>(None, handler)
    }

    fn ruma<R, C, F, Fut>(mut self, shape: Option<Shape>, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        C: Caller,
        F: Fn(Arc<Server>, C, R) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer>> + Send,
    {
        for path in R::PATH_BUILDER.all_paths() {
            let handler = handler.clone();
            self = self.at(R::METHOD, path, move |server: Arc<Server>, call: Call| {
                let handler = handler.clone();
                async move {
                    let caller = C::find(&server, &call.parts).await?;
                    let (call, body) = call.body(&server).await?;
                    if let Some(shape) = shape {
                        check_shape(&body, shape)?;
                    }
                    let request = decode::<R>(&call, &body)?;
                    handler(server, caller, request).await
                }
            });
        }
        self
    }

    /// An endpoint of our own, or one whose body must not be read into memory.
    #[must_use]
    pub fn at<F, Fut>(mut self, method: http::Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Arc<Server>, Call) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer>> + Send,
    {
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        self.table.push((method, path));
        self.router = self.router.route(
            path,
            on(
                filter,
                move |axum::extract::State(server): axum::extract::State<Arc<Server>>,
                      params: Result<RawPathParams, axum::extract::rejection::RawPathParamsRejection>,
                      request: Request<Body>| {
                    let handler = handler.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let Ok(params) = params else {
                            return reply::error(invalid("The path is not UTF-8."));
                        };
                        if parts.uri.to_string().contains("%00") {
                            // PostgreSQL cannot store it: one request would fail its whole batch.
                            return reply::error(invalid("The path or query has a NUL character."));
                        }
                        let args = params.iter().map(|(_, value)| value.to_owned()).collect();
                        let call = Call {
                            parts,
                            args,
                            template: path,
                            unread: crate::rooms::live::parking::Mutex::new(Some(body)),
                        };
                        match handler(server, call).await {
                            Ok(Answer::Json(text)) => reply::json(http::StatusCode::OK, text),
                            Ok(Answer::Response(response)) => response,
                            Err(error) => reply::error(error),
                        }
                    }
                },
            ),
        );
        self
    }

    /// The axum router.
    pub fn into_router(self) -> Router<Arc<Server>> {
        self.router
    }
}

/// A request on its way to a handler.
pub struct Call {
    /// Its head.
    pub parts: http::request::Parts,
    /// The path's arguments, percent-decoded, in order.
    pub args: Vec<String>,
    /// The route's template: what logs may say of the path.
    pub template: &'static str,
    /// The body, until it is read.
    unread: crate::rooms::live::parking::Mutex<Option<Body>>,
}

impl Call {
    /// The body, to read it as a stream; none where it was taken.
    pub fn take_body(&mut self) -> Option<Body> {
        self.unread.lock().take()
    }

    /// An argument of the path.
    pub fn arg(&self, i: usize) -> &str {
        self.args.get(i).map_or("", String::as_str)
    }

    /// A parameter of the query.
    pub fn query(&self, name: &str) -> Option<String> {
        let query = self.parts.uri.query()?;
        form(query).into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Reads the body: within the limit and time, and, where it is JSON, strictly.
    pub async fn body(mut self, server: &Server) -> Result<(Self, Bytes)> {
        let body = read(
            self.take_body(),
            server.config.limits.json_bytes,
            Duration::from_secs(server.config.limits.request_seconds),
        )
        .await?;
        if !body.is_empty() && self.parts.method != http::Method::GET {
            json::check(&body)?;
            // Every JSON body of the API is an object, and serde takes a list for one: its items as fields in order.
            if body.trim_ascii_start().first() != Some(&b'{') {
                return Err(refuse(Code::BadJson, "The body must be a JSON object."));
            }
        }
        Ok((self, body))
    }

    /// Reads a JSON body into a type of ours.
    pub async fn json<T: serde::de::DeserializeOwned>(self, server: &Server) -> Result<(Self, T)> {
        let (call, body) = self.body(server).await?;
        let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
        let value = serde_json::from_slice(&body).map_err(|error| {
            refuse(Code::BadJson, format!("The JSON is not what this call takes: {}.", shape(&error)))
        })?;
        Ok((call, value))
    }
}

/// What is wrong with a JSON's shape, without repeating what was sent.
pub fn shape(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.starts_with("missing field") || text.starts_with("unknown field") {
        text.split(" at line").next().unwrap_or_default().to_owned()
    } else {
        "a field has the wrong type".to_owned()
    }
}

/// Looks at a body before it is decoded; an empty one is an empty object, as ruma reads it.
fn check_shape(body: &Bytes, shape: Shape) -> Result<()> {
    let body = if body.is_empty() { &b"{}"[..] } else { body };
    shape(&serde_json::from_slice(body)?)
}

/// A member that must be there, whatever it is (client-server API, `M_MISSING_PARAM`).
pub fn needed<'a>(
    object: &'a serde_json::Map<String, serde_json::Value>,
    name: &str,
) -> Result<&'a serde_json::Value> {
    object.get(name).ok_or_else(|| refuse(Code::MissingParam, format!("The body has no {name}.")))
}

/// Reads a body into memory.
pub async fn read(body: Option<Body>, limit: usize, time: Duration) -> Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let collected = tokio::time::timeout(time, http_body_util::Limited::new(body, limit).collect())
        .await
        .map_err(|_| refuse(Code::TooLarge, "The request's body took too long."))?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(refuse(Code::TooLarge, format!("The request is too large: at most {limit} bytes.")))
        }
        Err(_) => Err(refuse(Code::NotJson, "The request's body broke off.")),
    }
}

fn decode<R: IncomingRequest>(call: &Call, body: &Bytes) -> Result<R> {
    // What is sent has a content; only actions such as leaving may come without a body.
    if body.is_empty() && call.parts.method == http::Method::PUT {
        return Err(refuse(Code::NotJson, "The body is empty: this call takes a JSON object."));
    }
    let mut request = Request::new(&body[..]);
    *request.method_mut() = call.parts.method.clone();
    *request.uri_mut() = call.parts.uri.clone();
    *request.headers_mut() = call.parts.headers.clone();
    let args: Vec<&str> = call.args.iter().map(String::as_str).collect();
    R::try_from_http_request(request, &args).map_err(|error| match error {
        FromHttpRequestError::Deserialization(DeserializationError::Json(error)) => {
            refuse(Code::BadJson, format!("The JSON is not what this call takes: {}.", shape(&error)))
        }
        FromHttpRequestError::Deserialization(DeserializationError::Query(error)) => {
            if error.to_string().contains("missing field") {
                refuse(Code::MissingParam, "A parameter of the query is missing.")
            } else {
                invalid("A parameter of the query has a value that is not allowed.")
            }
        }
        FromHttpRequestError::MethodMismatch { .. } => {
            refuse(Code::MethodNotAllowed, "This path takes another method.")
        }
        _ => invalid("A part of the path or a header has a value that is not allowed."),
    })
}

/// The bearer token of a request.
pub fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

/// A form's or query's fields, percent-decoded.
pub fn form(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}
