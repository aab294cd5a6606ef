;; A guest that the host can give nothing to.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1")))
