package proxywasm

// The buffers of the ABI.
const (
	requestBody = iota
	responseBody
	downstreamData
	upstreamData
	callBody
	grpcMessage
	vmConfiguration
	pluginConfiguration
	callData
	bufferTypes
)

// buffer is a part of a body that the guest sees and may replace. Its bytes are
// not the guest's to change in place.
type buffer struct{ b []byte }

// bytes returns a buffer's content; there are those that exist now only.
func (v *vm) bytes(kind uint64) ([]byte, bool) {
	c := v.acting()
	switch kind {
	case requestBody, responseBody:
		if b := v.body(kind); b != nil {
			return b.b, true
		}
	case callBody, grpcMessage:
		if c.root != nil && c.root.answer != nil && c.root.answer.grpc == (kind == grpcMessage) {
			return c.root.answer.body, true
		}
	case vmConfiguration:
		return []byte(v.pool.cfg.VMConfig), true
	case pluginConfiguration:
		if c.configuring {
			return []byte(c.plugin.cfg.PluginConfig), true
		}
	}
	return nil, false
}

func (v *vm) body(kind uint64) *buffer {
	c := v.acting()
	switch {
	case !c.accessible():
		return nil
	case kind == requestBody:
		return c.requestBody
	}
	return c.responseBody
}

func (v *vm) getBuffer(a []uint64) Status {
	if a[0] >= bufferTypes {
		return StatusBadArgument
	}
	b, ok := v.bytes(a[0])
	if !ok {
		return StatusNotFound
	}
	from := min(a[1], uint64(len(b)))
	to := min(from+a[2], uint64(len(b)))
	return v.give(b[from:to], a[3], a[4])
}

func (v *vm) getBufferStatus(a []uint64) Status {
	if a[0] >= bufferTypes {
		return StatusBadArgument
	}
	b, ok := v.bytes(a[0])
	if !ok {
		return StatusNotFound
	}
	if !v.put(a[1], uint32(len(b))) || !v.put(a[2], 0) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

// setBuffer prepends to a body, appends to it or replaces it, as in Envoy.
func (v *vm) setBuffer(a []uint64) Status {
	if a[0] >= bufferTypes {
		return StatusBadArgument
	}
	if _, ok := v.bytes(a[0]); !ok {
		return StatusNotFound
	}
	data, ok := v.read(a[3], a[4])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	if a[0] > responseBody {
		return StatusBadArgument
	}
	b := v.body(a[0])
	start, size := a[1], a[2]
	var out []byte
	switch n := uint64(len(b.b)); {
	case start == 0 && size == 0:
		out = append(append(make([]byte, 0, len(data)+len(b.b)), data...), b.b...)
	case start == 0 && size >= n:
		out = append(out, data...)
	case start >= n && start > 0:
		out = append(append(make([]byte, 0, len(data)+len(b.b)), b.b...), data...)
	default:
		return StatusBadArgument
	}
	b.b = out
	return StatusOK
}
