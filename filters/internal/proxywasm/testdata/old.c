// A guest for the first version of the ABI.
#include "abi.h"
HOST(proxy_get_configuration)(char **p, u32 *n);
HOST(proxy_continue_request)(void);
HOST(proxy_clear_route_cache)(void);
void GUEST(proxy_abi_version_0_1_0)(void) {}
static void number(const char *what, u32 st) { str(what); num(st); flush(); }
u32 GUEST(proxy_on_configure)(u32 id, u32 size) {
  char *p; u32 n;
  number("configuration ", proxy_get_configuration(&p, &n)); put(p, n); flush();
  return 1;
}
u32 GUEST(proxy_on_request_headers)(u32 id, u32 n) {
  char *v; u32 vn = 9;
  number("headers ", n);
  number("missing ", get(REQUEST, "x-missing", &v, &vn)); number("size ", vn);
  number("clear ", proxy_clear_route_cache());
  number("continue ", proxy_continue_request());
  return 1;
}
u32 GUEST(proxy_on_response_headers)(u32 id, u32 n) { number("response ", n); return 0; }
