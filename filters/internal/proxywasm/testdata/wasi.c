// A reactor that uses WASI: its environment, standard output, clocks, randomness.
#include "abi.h"
#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name))) u32 name
WASI(fd_write)(u32 fd, const void *iov, u32 n, u32 *written);
WASI(environ_sizes_get)(u32 *count, u32 *size);
WASI(environ_get)(char **env, char *buf);
WASI(clock_time_get)(u32 id, u64 precision, u64 *t);
WASI(random_get)(void *p, u32 n);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("proc_exit"))) void proc_exit(u32 code);
void GUEST(proxy_abi_version_0_2_0)(void) {}
static void print(u32 fd, const char *s) { const void *iov[] = {s, (void *)len(s)}; u32 n; str("write "); num(fd_write(fd, iov, 1, &n)); flush(); }
static u32 initialized;
void GUEST(_initialize)(void) { initialized = 1; }
int GUEST(main)(int argc, char **argv) { print(1, initialized ? "main after initialize\n" : "main\n"); return 0; }
u32 GUEST(proxy_on_configure)(u32 id, u32 size) {
  char *env[16]; static char buf[1024]; u32 n = 0, bytes = 0; u64 now = 0, r = 0;
  environ_sizes_get(&n, &bytes);
  environ_get(env, buf);
  for (u32 i = 0; i < n; i++) { str("env "); str(env[i]); flush(); }
  print(2, "to standard error\n");
  str("clock "); num(clock_time_get(0, 1, &now)); str(" "); num(now > 1700000000000000000ull); flush();
  str("random "); num(random_get(&r, 8)); str(" "); num(r != 0); flush();
  return 1;
}
u32 GUEST(proxy_on_request_headers)(u32 id, u32 n, u32 end) { proc_exit(3); return 0; }
