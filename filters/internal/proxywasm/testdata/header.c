// A guest that sets one header of each request, for benchmarks.
#include "abi.h"
void GUEST(proxy_abi_version_0_2_1)(void) {}
void GUEST(proxy_on_context_create)(u32 id, u32 parent) {}
u32 GUEST(proxy_on_request_headers)(u32 id, u32 n, u32 end) {
  char *v; u32 vn;
  used = 0;
  if (!get(REQUEST, ":path", &v, &vn)) set(REQUEST, "x-path", v, vn);
  return 0;
}
