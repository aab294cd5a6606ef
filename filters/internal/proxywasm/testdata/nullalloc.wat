;; A guest whose allocator has nothing left, and which recurses without end when
;; it sees a response.
(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) ":path")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 0))
  ;; It pauses, for good, unless it is told that there was no memory (6).
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (i32.ne (call $get (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 0) (i32.const 4)) (i32.const 6)))
  (func $deeper (param i32) (result i32)
    (i32.add (call $deeper (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $deeper (i32.const 0))))
