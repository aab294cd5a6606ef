// The host functions of the Proxy-Wasm ABI 0.2.1, and a few lines to live with
// them without a C library.
#pragma once
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;
#define NULL ((void *)0)
#define HOST(name) __attribute__((import_module("env"), import_name(#name))) u32 name
#define GUEST(name) __attribute__((export_name(#name))) name

HOST(proxy_log)(u32 level, const char *p, u32 n);
HOST(proxy_get_log_level)(u32 *level);
HOST(proxy_get_property)(const char *path, u32 n, char **value, u32 *size);
HOST(proxy_set_property)(const char *path, u32 n, const char *value, u32 size);
HOST(proxy_get_header_map_value)(u32 map, const char *k, u32 kn, char **v, u32 *vn);
HOST(proxy_add_header_map_value)(u32 map, const char *k, u32 kn, const char *v, u32 vn);
HOST(proxy_replace_header_map_value)(u32 map, const char *k, u32 kn, const char *v, u32 vn);
HOST(proxy_remove_header_map_value)(u32 map, const char *k, u32 kn);
HOST(proxy_get_header_map_pairs)(u32 map, char **p, u32 *n);
HOST(proxy_set_header_map_pairs)(u32 map, const char *p, u32 n);
HOST(proxy_get_header_map_size)(u32 map, u32 *n);
HOST(proxy_get_buffer_bytes)(u32 buffer, u32 start, u32 size, char **p, u32 *n);
HOST(proxy_get_buffer_status)(u32 buffer, u32 *n, u32 *flags);
HOST(proxy_set_buffer_bytes)(u32 buffer, u32 start, u32 size, const char *p, u32 n);
HOST(proxy_send_local_response)(u32 code, const char *details, u32 dn, const char *body, u32 bn, const char *headers, u32 hn, u32 grpc);
HOST(proxy_continue_stream)(u32 type);
HOST(proxy_close_stream)(u32 type);
HOST(proxy_http_call)(const char *cluster, u32 cn, const char *headers, u32 hn, const char *body, u32 bn, const char *trailers, u32 tn, u32 ms, u32 *token);
HOST(proxy_grpc_call)(const char *service, u32 sn, const char *name, u32 nn, const char *method, u32 mn, const char *metadata, u32 dn, const char *request, u32 rn, u32 ms, u32 *token);
HOST(proxy_grpc_stream)(const char *service, u32 sn, const char *name, u32 nn, const char *method, u32 mn, const char *metadata, u32 dn, u32 *token);
HOST(proxy_grpc_send)(u32 token, const char *p, u32 n, u32 end);
HOST(proxy_grpc_cancel)(u32 token);
HOST(proxy_grpc_close)(u32 token);
HOST(proxy_get_status)(u32 *code, char **p, u32 *n);
HOST(proxy_get_shared_data)(const char *k, u32 kn, char **v, u32 *vn, u32 *cas);
HOST(proxy_set_shared_data)(const char *k, u32 kn, const char *v, u32 vn, u32 cas);
HOST(proxy_register_shared_queue)(const char *name, u32 n, u32 *token);
HOST(proxy_resolve_shared_queue)(const char *vm, u32 vn, const char *name, u32 n, u32 *token);
HOST(proxy_enqueue_shared_queue)(u32 token, const char *p, u32 n);
HOST(proxy_dequeue_shared_queue)(u32 token, char **p, u32 *n);
HOST(proxy_define_metric)(u32 type, const char *name, u32 n, u32 *id);
HOST(proxy_increment_metric)(u32 id, long long by);
HOST(proxy_record_metric)(u32 id, u64 value);
HOST(proxy_get_metric)(u32 id, u64 *value);
HOST(proxy_set_tick_period_milliseconds)(u32 ms);
HOST(proxy_get_current_time_nanoseconds)(u64 *t);
HOST(proxy_set_effective_context)(u32 id);
HOST(proxy_done)(void);
HOST(proxy_call_foreign_function)(const char *name, u32 n, const char *arg, u32 an, char **p, u32 *size);

enum { REQUEST, REQUEST_TRAILERS, RESPONSE, RESPONSE_TRAILERS, GRPC_INITIAL, GRPC_TRAILING, CALL_HEADERS, CALL_TRAILERS };
enum { REQUEST_BODY, RESPONSE_BODY, DOWNSTREAM, UPSTREAM, CALL_BODY, GRPC_MESSAGE, VM_CONFIG, PLUGIN_CONFIG };

// The allocator starts anew with each stream's headers: what the host gave lives
// as long as the callback.
static char heap[1 << 18];
static u32 used;
void *GUEST(malloc)(u32 n) {
  if (used + n > sizeof heap) used = 0;
  if (n > sizeof heap) return NULL;
  char *p = heap + used;
  used += (n + 15) & ~15u;
  return p;
}

static u32 len(const char *s) { u32 n = 0; while (s[n]) n++; return n; }
static int same(const char *a, u32 n, const char *s) {
  for (u32 i = 0; i < n; i++) if (!s[i] || a[i] != s[i]) return 0;
  return !s[n];
}
void *memcpy(void *d, const void *s, u32 n) { for (u32 i = 0; i < n; i++) ((char *)d)[i] = ((char *)s)[i]; return d; }
void *memset(void *d, int c, u32 n) { for (u32 i = 0; i < n; i++) ((volatile char *)d)[i] = c; return d; }

// A line that is written piece by piece.
static char line[4096];
static u32 at;
static void put(const char *p, u32 n) { if (at + n < sizeof line) { memcpy(line + at, p, n); at += n; } }
static void str(const char *s) { put(s, len(s)); }
static void num(long long v) {
  char b[24]; u32 i = sizeof b; int minus = v < 0; if (minus) v = -v;
  do { b[--i] = '0' + v % 10; v /= 10; } while (v);
  if (minus) b[--i] = '-';
  put(b + i, sizeof b - i);
}
static void flush(void) { proxy_log(2, line, at); at = 0; }

// Pairs of strings as the host takes and gives them.
static u32 pairs(char *b, u32 n, const char **kv) {
  u32 *p = (u32 *)b; *p++ = n;
  for (u32 i = 0; i < 2 * n; i++) *p++ = len(kv[i]);
  char *c = (char *)p;
  for (u32 i = 0; i < 2 * n; i++) { u32 l = len(kv[i]); memcpy(c, kv[i], l); c[l] = 0; c += l + 1; }
  return c - b;
}
static int get(u32 map, const char *k, char **v, u32 *n) { *v = NULL; *n = 0; return proxy_get_header_map_value(map, k, len(k), v, n); }
static u32 set(u32 map, const char *k, const char *v, u32 n) { return proxy_replace_header_map_value(map, k, len(k), v, n); }
