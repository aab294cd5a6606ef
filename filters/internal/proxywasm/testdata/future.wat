;; A guest for a version of the ABI that is not known.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_9_0"))
  (func (export "malloc") (param i32) (result i32) (i32.const 0)))
