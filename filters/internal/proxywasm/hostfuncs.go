package proxywasm

import (
	"context"
	"encoding/binary"
	"log/slog"
	"strings"
	"time"
)

// hostFunction is a function that guests import from "env".
type hostFunction struct {
	// params has a letter for each parameter: i for i32, l for i64.
	params string
	call   func(v *vm, a []uint64) Status
	// abi has a bit for each version that has the function; 0 is every one.
	abi  uint8
	void bool
}

const (
	only010 = 1 << ABI010
	from020 = 1<<ABI020 | 1<<ABI021
	only021 = 1 << ABI021
)

// hostFunctions is complete: nothing else can be imported from "env".
var hostFunctions = map[string]hostFunction{
	"proxy_log":           {params: "iii", call: (*vm).log},
	"proxy_get_log_level": {params: "i", call: (*vm).getLogLevel, abi: only021},
	"proxy_get_status":    {params: "iii", call: (*vm).getStatus},

	"proxy_set_tick_period_milliseconds": {params: "i", call: (*vm).setTickPeriod},
	"proxy_get_current_time_nanoseconds": {params: "i", call: (*vm).getCurrentTime},
	"proxy_set_effective_context":        {params: "i", call: (*vm).setEffectiveContext},
	"proxy_done":                         {call: (*vm).guestDone},
	"proxy_call_foreign_function":        {params: "iiiiii", call: (*vm).callForeignFunction},

	"proxy_get_property": {params: "iiii", call: (*vm).getProperty},
	"proxy_set_property": {params: "iiii", call: (*vm).setProperty},

	"proxy_get_header_map_value":     {params: "iiiii", call: (*vm).getHeader},
	"proxy_add_header_map_value":     {params: "iiiii", call: (*vm).addHeader},
	"proxy_replace_header_map_value": {params: "iiiii", call: (*vm).replaceHeader},
	"proxy_remove_header_map_value":  {params: "iii", call: (*vm).removeHeader},
	"proxy_get_header_map_pairs":     {params: "iii", call: (*vm).getHeaders},
	"proxy_set_header_map_pairs":     {params: "iii", call: (*vm).setHeaders},
	"proxy_get_header_map_size":      {params: "ii", call: (*vm).getHeadersSize},

	"proxy_get_buffer_bytes":  {params: "iiiii", call: (*vm).getBuffer},
	"proxy_get_buffer_status": {params: "iii", call: (*vm).getBufferStatus},
	"proxy_set_buffer_bytes":  {params: "iiiii", call: (*vm).setBuffer},

	"proxy_send_local_response": {params: "iiiiiiii", call: (*vm).sendLocalResponse},
	"proxy_continue_stream":     {params: "i", call: (*vm).continueStream, abi: from020},
	"proxy_close_stream":        {params: "i", call: (*vm).closeStream, abi: from020},
	"proxy_continue_request":    {call: func(v *vm, _ []uint64) Status { return v.goOn(0) }, abi: only010},
	"proxy_continue_response":   {call: func(v *vm, _ []uint64) Status { return v.goOn(1) }, abi: only010},
	"proxy_clear_route_cache":   {call: func(v *vm, _ []uint64) Status { return v.clearRouteCache() }, abi: only010},
	"proxy_get_configuration":   {params: "ii", call: (*vm).getConfiguration, abi: only010},

	"proxy_http_call":   {params: "iiiiiiiiii", call: (*vm).httpCall},
	"proxy_grpc_call":   {params: "iiiiiiiiiiii", call: (*vm).grpcCall},
	"proxy_grpc_stream": {params: "iiiiiiiii", call: func(*vm, []uint64) Status { return StatusUnimplemented }},
	"proxy_grpc_send":   {params: "iiii", call: func(*vm, []uint64) Status { return StatusNotFound }},
	"proxy_grpc_cancel": {params: "i", call: (*vm).grpcCancel},
	"proxy_grpc_close":  {params: "i", call: (*vm).grpcCancel},

	"proxy_get_shared_data":       {params: "iiiii", call: (*vm).getSharedData},
	"proxy_set_shared_data":       {params: "iiiii", call: (*vm).setSharedData},
	"proxy_register_shared_queue": {params: "iii", call: (*vm).registerQueue},
	"proxy_resolve_shared_queue":  {params: "iiiii", call: (*vm).resolveQueue},
	"proxy_enqueue_shared_queue":  {params: "iii", call: (*vm).enqueue},
	"proxy_dequeue_shared_queue":  {params: "iii", call: (*vm).dequeue},

	"proxy_define_metric":    {params: "iiii", call: (*vm).defineMetric},
	"proxy_increment_metric": {params: "il", call: (*vm).incrementMetric},
	"proxy_record_metric":    {params: "il", call: (*vm).recordMetric},
	"proxy_get_metric":       {params: "ii", call: (*vm).getMetric},

	"emscripten_notify_memory_growth": {params: "i", call: func(*vm, []uint64) Status { return 0 }, void: true},
	"pthread_equal": {params: "ii", call: func(_ *vm, a []uint64) Status {
		if uint32(a[0]) == uint32(a[1]) {
			return 1
		}
		return 0
	}},
}

// levelTrace and levelCritical are the guest's levels that slog has not.
const (
	levelTrace    = slog.LevelDebug - 4
	levelCritical = slog.LevelError + 4
)

var logLevels = [...]slog.Level{levelTrace, slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError, levelCritical}

func (v *vm) log(a []uint64) Status {
	b, ok := v.read(a[1], a[2])
	switch {
	case !ok:
		return StatusInvalidMemoryAccess
	case a[0] >= uint64(len(logLevels)):
		return StatusBadArgument
	}
	v.guestLog(logLevels[a[0]], string(b[:min(len(b), maxLog)]))
	return StatusOK
}

func (v *vm) getLogLevel(a []uint64) Status {
	l, level := v.logger(), len(logLevels)-1
	for level > 0 && l.Enabled(context.Background(), logLevels[level-1]) {
		level--
	}
	if !v.put(a[0], uint32(level)) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

// getStatus is that of the last callout.
func (v *vm) getStatus(a []uint64) Status {
	root := v.acting().root
	if !v.put(a[0], root.statusCode) {
		return StatusInvalidMemoryAccess
	}
	return v.giveString(root.statusText, a[1], a[2])
}

func (v *vm) getCurrentTime(a []uint64) Status {
	if !v.mem.WriteUint64Le(uint32(a[0]), uint64(time.Now().UnixNano())) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

func (v *vm) setEffectiveContext(a []uint64) Status {
	c := v.contexts[uint32(a[0])]
	if c == nil {
		return StatusBadArgument
	}
	v.effective = c
	return StatusOK
}

// callForeignFunction knows one function, which the later ABIs have no function
// of their own for.
func (v *vm) callForeignFunction(a []uint64) Status {
	name, ok := v.read(a[0], a[1])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	if _, ok := v.read(a[2], a[3]); !ok {
		return StatusInvalidMemoryAccess
	}
	if string(name) != "clear_route_cache" {
		return StatusNotFound
	}
	if uint32(a[4]) != 0 && !v.put(a[4], 0) || uint32(a[5]) != 0 && !v.put(a[5], 0) {
		return StatusInvalidMemoryAccess
	}
	return v.clearRouteCache()
}

func (v *vm) sendLocalResponse(a []uint64) Status {
	details, ok1 := v.read(a[1], a[2])
	body, ok2 := v.read(a[3], a[4])
	fields, ok3 := v.read(a[5], a[6])
	if !ok1 || !ok2 || !ok3 {
		return StatusInvalidMemoryAccess
	}
	c := v.acting()
	status := uint32(a[0])
	if status < 200 || status > 599 || len(body) > maxCalloutBody {
		return StatusBadArgument
	}
	l := &localReply{status: int(status), body: string(body), details: cleanDetails(details), grpc: int32(uint32(a[7]))}
	if len(fields) > 0 {
		pairs, ok := parsePairs(fields)
		if !ok || !validResponse(pairs) {
			return StatusBadArgument
		}
		for _, kv := range pairs {
			l.headers = append(l.headers, [2]string{strings.ToLower(string(kv[0])), string(kv[1])})
		}
	}
	if c.stream == nil || c.local != nil || c.replied {
		return StatusOK // as Envoy: the first one counts
	}
	c.local = l
	c.signal()
	return StatusOK
}

// maxDetails bounds what a guest says about its answer.
const maxDetails = 256

// cleanDetails are the details without bytes that end a word, or the line.
func cleanDetails(b []byte) string {
	b = b[:min(len(b), maxDetails)]
	return strings.Map(func(r rune) rune {
		switch {
		case r <= ' ' || r == 0x7f || r == '{' || r == '}':
			return '_'
		case r > 0x7f:
			return '?'
		}
		return r
	}, string(b))
}

func (v *vm) continueStream(a []uint64) Status { return v.goOn(uint32(a[0])) }

// goOn lets a direction of a stream continue: 0 is the request.
func (v *vm) goOn(direction uint32) Status {
	c := v.acting()
	switch {
	case direction > 3:
		return StatusBadArgument
	case c.stream == nil || direction > 1:
		return StatusOK
	case direction == 0:
		c.goRequest = true
	default:
		c.goResponse = true
	}
	c.signal()
	return StatusOK
}

func (v *vm) closeStream(a []uint64) Status {
	c := v.acting()
	switch {
	case uint32(a[0]) > 3:
		return StatusBadArgument
	case c.stream == nil || uint32(a[0]) > 1:
		return StatusOK
	}
	c.closed = true
	c.signal()
	return StatusOK
}

func (v *vm) clearRouteCache() Status {
	v.acting().rerouted = true
	return StatusOK
}

func (v *vm) getConfiguration(a []uint64) Status {
	text := v.pool.cfg.VMConfig
	if c := v.acting(); c.configuring {
		text = c.plugin.cfg.PluginConfig
	}
	return v.giveString(text, a[0], a[1])
}

// parsePairs takes apart a list of pairs as the ABI writes it.
func parsePairs(b []byte) ([][2][]byte, bool) {
	if len(b) < 4 || len(b) > maxPairsBytes {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxPairs || uint64(len(b)) < 4+8*uint64(n) {
		return nil, false
	}
	sizes, rest := b[4:4+8*n], b[4+8*n:]
	out := make([][2][]byte, n)
	for i := range out {
		for k := range 2 {
			size := uint64(binary.LittleEndian.Uint32(sizes[8*i+4*k:]))
			if size+1 > uint64(len(rest)) || rest[size] != 0 {
				return nil, false
			}
			out[i][k], rest = rest[:size:size], rest[size+1:]
		}
	}
	return out, len(rest) == 0
}

// appendPairs writes a list of pairs; each yields them in order.
func appendPairs(b []byte, n int, each func(i int) (string, string)) []byte {
	b = le(b, n)
	for i := range n {
		k, v := each(i)
		b = le(le(b, len(k)), len(v))
	}
	for i := range n {
		k, v := each(i)
		b = append(append(append(append(b, k...), 0), v...), 0)
	}
	return b
}
