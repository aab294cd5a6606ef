// A guest that tells in the log what it is called with, and does what the
// request's header x-do says, word by word.
#include "abi.h"

void GUEST(proxy_abi_version_0_2_1)(void) {}

static u32 later, later_done;
static u32 root, vm_starts, configured, ticks, calls_pending, waiting, queue, tick_left;
static char plan[1024][64]; // of each context
static u32 token_of[1024];

static int doing(u32 id, const char *word) {
  const char *p = plan[id & 1023];
  u32 n = len(word);
  while (*p) {
    u32 k = 0; while (p[k] && p[k] != ' ') k++;
    if (k == n && same(p, k, word)) return 1;
    p += k; while (*p == ' ') p++;
  }
  return 0;
}
static void event(const char *name, u32 id, u32 a, u32 b) { str(name); str(" "); num(id - root); str(" "); num(a); str(" "); num(b); flush(); }
static void property(const char *label, const char *path, u32 n) {
  char *v; u32 size; u32 st = proxy_get_property(path, n, &v, &size);
  str("property "); str(label); str("=");
  if (st) { str("!"); num(st); } else put(v, size);
  flush();
}
#define PROPERTY(label, path) property(label, path, sizeof path - 1)
static void status(const char *what, u32 st) { str(what); str("="); num(st); flush(); }
static void local(u32 code, const char *body) {
  char b[64]; const char *kv[] = {"x-local", "yes"};
  proxy_send_local_response(code, "by_guest", 8, body, len(body), b, pairs(b, 1, kv), -1);
}
volatile u32 sink;
static void endless(void) { for (;;) sink++; }
static u32 dispatch(u32 id, const char *cluster) {
  char b[256]; u32 token = 0;
  const char *kv[] = {":method", "POST", ":path", "/callout", ":authority", "auth", "x-call", "1"};
  u32 st = proxy_http_call(cluster, len(cluster), b, pairs(b, 4, kv), "question", 8, NULL, 0, 500, &token);
  token_of[token & 511] = id;
  status("http_call", st);
  return st;
}

int GUEST(proxy_on_vm_start)(u32 id, u32 size) {
  char *p; u32 n;
  vm_starts++;
  u32 st = proxy_get_buffer_bytes(VM_CONFIG, 0, size, &p, &n);
  str("vm_start "); num(size); str(" "); num(st); str(" "); put(p, n); flush();
  return !same(p, n, "refuse");
}
int GUEST(proxy_on_configure)(u32 id, u32 size) {
  char *p = NULL; u32 n = 0;
  root = id;
  configured++;
  u32 st = size ? proxy_get_buffer_bytes(PLUGIN_CONFIG, 0, size, &p, &n) : 0;
  str("configure "); num(size); str(" "); num(st); str(" "); put(p, n); flush();
  PROPERTY("plugin_name", "plugin_name");
  PROPERTY("plugin_root_id", "plugin_root_id");
  PROPERTY("plugin_vm_id", "plugin_vm_id");
  if (same(p, n, "refuse")) return 0;
  if (same(p, n, "trap")) __builtin_trap();
  if (same(p, n, "tick")) { tick_left = 3; status("set_tick", proxy_set_tick_period_milliseconds(20)); }
  later = same(p, n, "later");
  if (later) status("set_tick", proxy_set_tick_period_milliseconds(20));
  if (same(p, n, "queue")) status("register", proxy_register_shared_queue("q", 1, &queue));
  return 1;
}
void GUEST(proxy_on_context_create)(u32 id, u32 parent) {
  if (!parent) { root = id; }
  event("create", id, parent ? parent - root : 0, 0);
}
void GUEST(proxy_on_tick)(u32 id) {
  event("tick", id, 0, 0);
  if (later == 2 && !later_done) { later_done = 1; status("done", proxy_done()); return; }
  if (tick_left && !--tick_left) proxy_set_tick_period_milliseconds(0);
}
void GUEST(proxy_on_queue_ready)(u32 id, u32 token) {
  char *p; u32 n;
  u32 st = proxy_dequeue_shared_queue(token, &p, &n);
  str("queue "); num(st); str(" "); if (!st) put(p, n); flush();
}

static void change_headers(u32 map, u32 id) {
  char *v; u32 n; u32 size;
  status("add", proxy_add_header_map_value(map, "X-Added", 7, "one", 3));
  status("add", proxy_add_header_map_value(map, "x-added", 7, "two", 3));
  status("replace", proxy_replace_header_map_value(map, "x-replaced", 10, "new", 3));
  status("remove", proxy_remove_header_map_value(map, "x-removed", 9));
  status("get", get(map, "x-added", &v, &n)); str("got "); put(v, n); flush();
  status("missing", get(map, "x-missing", &v, &n));
  status("bad name", proxy_add_header_map_value(map, "x bad", 5, "v", 1));
  status("bad value", proxy_add_header_map_value(map, "x-bad", 5, "a\r\nb: c", 7));
  status("bad map", proxy_add_header_map_value(9, "x-bad", 5, "v", 1));
}

int GUEST(proxy_on_request_headers)(u32 id, u32 n, u32 end) {
  char *v; u32 vn;
  used = 0;
  event("request_headers", id, n, end);
  char *to = plan[id & 1023]; to[0] = 0;
  if (!get(REQUEST, "x-do", &v, &vn)) { if (vn > 63) vn = 63; memcpy(to, v, vn); to[vn] = 0; }
  if (doing(id, "headers")) change_headers(REQUEST, id);
  if (doing(id, "local")) { local(403, "denied by guest"); return 1; }
  if (doing(id, "local-continue")) { local(403, "denied by guest"); return 0; }
  if (doing(id, "local-ok")) { local(200, "answered by guest"); return 1; }
  if (doing(id, "trap")) __builtin_trap();
  if (doing(id, "loop")) endless();
  if (doing(id, "pointer")) {
    status("log", proxy_log(2, (char *)0xfffffff0, 100));
    status("get", proxy_get_header_map_value(0, (char *)0x7fffffff, 5, &v, &vn));
    status("get to", proxy_get_header_map_value(0, ":path", 5, (char **)0xfffffffe, &vn));
    status("pairs", proxy_set_header_map_pairs(0, "\xff\xff\xff\x7f", 4));
    status("property", proxy_get_property((char *)0x70000000, 0x7fffffff, &v, &vn));
  }
  if (doing(id, "path")) status("path", set(REQUEST, ":path", "/other?x=1", 10));
  if (doing(id, "bad-path")) status("path", set(REQUEST, ":path", "/a b", 4));
  if (doing(id, "property")) {
    PROPERTY("path", "request\0path");
    PROPERTY("method", "request\0method");
    PROPERTY("header", "request\0headers\0x-do");
    PROPERTY("protocol", "request\0protocol");
    PROPERTY("route", "xds\0route_name");
    PROPERTY("route_name", "route_name");
    PROPERTY("cluster", "cluster_name");
    PROPERTY("missing", "nothing\0here");
    status("set", proxy_set_property("mine", 4, "value", 5));
    PROPERTY("mine", "mine");
    PROPERTY("mine2", "filter_state\0wasm.mine");
    PROPERTY("node", "node\0id");
    PROPERTY("node.metadata", "node\0metadata\0NAME");
  }
  if (doing(id, "call") || doing(id, "call-deny")) { if (!dispatch(id, "auth")) return 1; }
  if (doing(id, "call-nowhere")) { dispatch(id, "nowhere"); }
  if (doing(id, "grpc")) {
    char b[64]; const char *kv[] = {"x-meta", "m"}; u32 token = 0, other = 0;
    status("no cluster", proxy_grpc_call("nowhere", 7, "svc", 3, "M", 1, NULL, 0, "q", 1, 100, &other));
    status("stream", proxy_grpc_stream("auth", 4, "svc", 3, "M", 1, NULL, 0, &other));
    status("send", proxy_grpc_send(2, "q", 1, 1));
    status("grpc", proxy_grpc_call("auth", 4, "pkg.Svc", 7, "Method", 6, b, pairs(b, 1, kv), "question", 8, 500, &token));
    num(token); flush();
    token_of[(token & 511) + 512] = id;
    status("other", proxy_grpc_call("auth", 4, "pkg.Svc", 7, "Method", 6, NULL, 0, "cancelled", 9, 500, &other));
    status("cancel", proxy_grpc_cancel(other)); status("again", proxy_grpc_cancel(other));
    return 1;
  }
  if (doing(id, "pause")) return 1;
  if (doing(id, "stop-headers")) return 1;
  if (doing(id, "continue-self")) { status("continue", proxy_continue_stream(0)); return 1; }
  if (doing(id, "close")) { status("close", proxy_close_stream(0)); return 1; }
  if (doing(id, "end")) return 2;
  if (doing(id, "odd")) return 77;
  if (doing(id, "log-level")) { u32 l; proxy_get_log_level(&l); status("level", l); }
  if (doing(id, "enqueue")) { u32 t = 0; status("resolve", proxy_resolve_shared_queue("", 0, "q", 1, &t)); status("enqueue", proxy_enqueue_shared_queue(t, "item", 4)); }
  if (doing(id, "foreign")) { status("foreign", proxy_call_foreign_function("nothing", 7, NULL, 0, &v, &vn)); }
  if (doing(id, "shared")) {
    u32 cas = 0; u64 t = 0;
    status("get", proxy_get_shared_data("k", 1, &v, &vn, &cas));
    status("set", proxy_set_shared_data("k", 1, "v1", 2, 0));
    status("get", proxy_get_shared_data("k", 1, &v, &vn, &cas)); put(v, vn); flush();
    status("set", proxy_set_shared_data("k", 1, "v2", 2, cas));
    status("stale", proxy_set_shared_data("k", 1, "v3", 2, cas));
    status("time", proxy_get_current_time_nanoseconds(&t) || t < 1700000000000000000ull);
  }
  if (doing(id, "metric")) {
    u32 c, g, h, x; u64 m = 0;
    status("counter", proxy_define_metric(0, "probe_calls", 11, &c)); num(c); flush();
    status("gauge", proxy_define_metric(1, "probe_level", 11, &g)); num(g); flush();
    status("histogram", proxy_define_metric(2, "probe_size", 10, &h)); num(h); flush();
    status("other", proxy_define_metric(3, "probe_x", 7, &x));
    status("inc", proxy_increment_metric(c, 2)); status("inc", proxy_increment_metric(c, -1)); status("inc", proxy_increment_metric(g, -3));
    status("record", proxy_record_metric(g, 7)); status("record", proxy_record_metric(h, 42)); status("record", proxy_record_metric(c, 5));
    status("get", proxy_get_metric(c, &m)); num(m); flush();
    status("get", proxy_get_metric(g, &m)); num(m); flush();
    status("get", proxy_get_metric(h, &m)); status("unknown", proxy_get_metric(400, &m)); status("inc", proxy_increment_metric(h, 1));
  }
  if (doing(id, "grow")) { u32 pages = 0; while (__builtin_wasm_memory_grow(0, 256) != (u32)-1) pages += 256; status("pages", __builtin_wasm_memory_size(0)); }
  if (doing(id, "pairs")) {
    char b[512]; u32 size;
    status("size", proxy_get_header_map_size(REQUEST, &size));
    const char *kv[] = {":method", "GET", ":path", "/set", ":authority", "set.example", ":scheme", "http", "x-set", "1", "x-set", "2"};
    status("set", proxy_set_header_map_pairs(REQUEST, b, pairs(b, 6, kv)));
    status("get", proxy_get_header_map_pairs(REQUEST, &v, &vn)); num(*(u32 *)v); flush();
    status("without", proxy_set_header_map_pairs(REQUEST, b, pairs(b, 1, kv)));
  }
  return 0;
}

static int body(const char *name, u32 buffer, u32 id, u32 n, u32 end) {
  char *p = NULL; u32 got = 0, size = 0, flags = 9;
  used = 0;
  event(name, id, n, end);
  u32 st = proxy_get_buffer_bytes(buffer, 0, n, &p, &got);
  u32 st2 = proxy_get_buffer_status(buffer, &size, &flags);
  str("body "); num(st); str(" "); put(p, got < 64 ? got : 64); str(" "); num(st2); str(" "); num(size); str(" "); num(flags); flush();
  return 0;
}
int GUEST(proxy_on_request_body)(u32 id, u32 n, u32 end) {
  char *v; u32 vn;
  body("request_body", REQUEST_BODY, id, n, end);
  if (doing(id, "buffer") && !end) return 1;
  if (doing(id, "drop-body")) return 3;
  if (doing(id, "watermark") && !end) return 2;
  if (doing(id, "body-replace") && end) status("set", proxy_set_buffer_bytes(REQUEST_BODY, 0, -1, "replaced", 8));
  if (doing(id, "body-prepend") && end) status("set", proxy_set_buffer_bytes(REQUEST_BODY, 0, 0, "before ", 7));
  if (doing(id, "body-append") && end) status("set", proxy_set_buffer_bytes(REQUEST_BODY, -1, 0, " behind", 7));
  if (doing(id, "body-middle") && n > 4) status("set", proxy_set_buffer_bytes(REQUEST_BODY, 1, 2, "x", 1));
  if (doing(id, "body-property")) { PROPERTY("path", "request\0path"); PROPERTY("route", "xds\0route_name"); PROPERTY("code", "response\0code"); status("set", proxy_set_property("mine", 4, "value", 5)); PROPERTY("mine", "mine"); }
  if (doing(id, "body-head")) status("late", set(REQUEST, "x-late", "1", 1));
  if (doing(id, "body-deny")) { local(403, "body denied"); return 1; }
  if (doing(id, "body-trap")) __builtin_trap();
  if (doing(id, "body-call") && end) { if (!dispatch(id, "auth")) return 1; }
  return 0;
}
int GUEST(proxy_on_request_trailers)(u32 id, u32 n) {
  event("request_trailers", id, n, 0);
  if (doing(id, "trailers")) { status("add", proxy_add_header_map_value(REQUEST_TRAILERS, "x-trailer-added", 15, "1", 1)); }
  return 0;
}
int GUEST(proxy_on_response_headers)(u32 id, u32 n, u32 end) {
  char *v; u32 vn;
  used = 0;
  event("response_headers", id, n, end);
  if (doing(id, "response-headers")) change_headers(RESPONSE, id);
  if (doing(id, "response-status")) status("status", set(RESPONSE, ":status", "418", 3));
  if (doing(id, "response-local")) { local(502, "response denied"); return 1; }
  if (doing(id, "response-trap")) __builtin_trap();
  if (doing(id, "response-call")) { if (!dispatch(id, "auth")) return 1; }
  if (doing(id, "response-length")) proxy_remove_header_map_value(RESPONSE, "content-length", 14);
  if (doing(id, "response-property")) { PROPERTY("code", "response\0code_details"); PROPERTY("upstream", "upstream\0address"); PROPERTY("rheader", "response\0headers\0x-origin"); }
  set(RESPONSE, "x-probe", "seen", 4);
  return 0;
}
int GUEST(proxy_on_response_body)(u32 id, u32 n, u32 end) {
  body("response_body", RESPONSE_BODY, id, n, end);
  if (doing(id, "response-buffer") && !end) return 1;
  if (doing(id, "response-replace") && end) status("set", proxy_set_buffer_bytes(RESPONSE_BODY, 0, -1, "replaced response", 17));
  if (doing(id, "response-body-local")) { local(500, "too late"); return 1; }
  if (doing(id, "response-body-trap")) __builtin_trap();
  return 0;
}
int GUEST(proxy_on_response_trailers)(u32 id, u32 n) {
  event("response_trailers", id, n, 0);
  if (doing(id, "response-trailers")) status("add", proxy_add_header_map_value(RESPONSE_TRAILERS, "x-trailer-added", 15, "1", 1));
  return 0;
}
void GUEST(proxy_on_http_call_response)(u32 id, u32 token, u32 headers, u32 size, u32 trailers) {
  char *v = NULL; u32 n = 0; u32 code = 0;
  used = 0;
  u32 stream = token_of[token & 511];
  event("call_response", id, headers, size);
  if (headers) { get(CALL_HEADERS, ":status", &v, &n); str("call status "); put(v, n); flush(); }
  n = 0; proxy_get_buffer_bytes(CALL_BODY, 0, size, &v, &n); str("call body "); if (size) put(v, n); flush();
  proxy_get_status(&code, &v, &n); str("status "); num(code); str(" "); put(v, n); flush();
  status("effective", proxy_set_effective_context(stream));
  if (doing(stream, "call-deny")) { local(401, "callout says no"); return; }
  if (doing(stream, "response-call")) { set(RESPONSE, "x-after-call", "1", 1); status("continue", proxy_continue_stream(1)); return; }
  if (!doing(stream, "body-call")) set(REQUEST, "x-after-call", "1", 1);
  status("continue", proxy_continue_stream(0));
}
int GUEST(proxy_on_done)(u32 id) {
  event("done", id, 0, 0);
  if (id == root && later) { later = 2; status("too early", proxy_done()); return 0; }
  return 1;
}
void GUEST(proxy_on_grpc_receive)(u32 id, u32 token, u32 size) {
  char *v = NULL; u32 n = 0;
  used = 0;
  event("grpc_receive", id, token, size);
  proxy_get_buffer_bytes(GRPC_MESSAGE, 0, size, &v, &n); str("message "); put(v, n); flush();
  proxy_set_effective_context(token_of[(token & 511) + 512]);
  status("continue", proxy_continue_stream(0));
}
void GUEST(proxy_on_grpc_close)(u32 id, u32 token, u32 code) {
  char *v = NULL; u32 n = 0, got = 99;
  used = 0;
  event("grpc_close", id, token, code);
  proxy_get_status(&got, &v, &n); str("status "); num(got); str(" "); put(v, n); flush();
  proxy_set_effective_context(token_of[(token & 511) + 512]);
  local(503, "no answer");
}
void GUEST(proxy_on_log)(u32 id) {
  char *v; u32 n;
  event("log", id, 0, 0);
  if (!get(RESPONSE, ":status", &v, &n)) { str("logged "); put(v, n); flush(); }
  if (!get(REQUEST, ":path", &v, &n)) { str("logged "); put(v, n); flush(); }
}
void GUEST(proxy_on_delete)(u32 id) { event("delete", id, 0, 0); plan[id & 1023][0] = 0; }
