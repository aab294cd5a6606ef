package admin

import (
	"net/http"
	"runtime"
	"runtime/metrics"
	"strconv"
)

// MemoryUse is what /debug/memory shows: what buffers hold, by who holds it, with
// the most that each may, and the rest of the process. All sizes are bytes.
type MemoryUse struct {
	// Listeners and Clusters are sorted by name; clusters without a connection may
	// be left out.
	Listeners []BufferUse `json:"listeners"`
	Clusters  []BufferUse `json:"clusters"`
	// Streams are those that hold most, the largest first.
	Streams []StreamUse `json:"streams"`
	// Others are further queues and stores of the process. A Bound of 0: as large
	// as the configuration is.
	Others []StoreUse `json:"others"`
}

// BufferUse is what the connections of a listener or a cluster hold.
type BufferUse struct {
	Name        string `json:"name"`
	Connections int    `json:"connections"`
	Streams     int    `json:"streams"`
	// Read was received and is not used yet, Write waits to be sent. Bound is the
	// most that they may come to on these connections.
	Read  int64 `json:"read"`
	Write int64 `json:"write"`
	Bound int64 `json:"bound"`
}

// StreamUse is what was received for one stream and waits for its consumer.
type StreamUse struct {
	// In is "listener NAME" or "cluster NAME"; Peer the remote address, Stream the
	// HTTP/2 stream, 0 with HTTP/1.
	In     string `json:"in"`
	Peer   string `json:"peer"`
	Stream uint32 `json:"stream"`
	Held   int64  `json:"held"`
	Bound  int64  `json:"bound"`
}

// StoreUse is one queue or store.
type StoreUse struct {
	Name  string `json:"name"`
	Held  int64  `json:"held"`
	Bound int64  `json:"bound"`
}

// runtimeClasses are what the Go runtime accounts for.
var runtimeClasses = []struct{ name, metric string }{
	{"heap_live", "/memory/classes/heap/objects:bytes"},
	{"heap_unused", "/memory/classes/heap/unused:bytes"},
	{"heap_free", "/memory/classes/heap/free:bytes"},
	{"heap_released", "/memory/classes/heap/released:bytes"},
	{"stacks", "/memory/classes/heap/stacks:bytes"},
	{"gc_and_runtime", "/memory/classes/metadata/other:bytes"},
	{"profiling", "/memory/classes/profiling/buckets:bytes"},
	{"total", "/memory/classes/total:bytes"},
}

func readRuntime() []StoreUse {
	samples := make([]metrics.Sample, len(runtimeClasses))
	for i, c := range runtimeClasses {
		samples[i].Name = c.metric
	}
	metrics.Read(samples)
	out := make([]StoreUse, len(samples))
	for i := range samples {
		out[i].Name = runtimeClasses[i].name
		if samples[i].Value.Kind() == metrics.KindUint64 {
			out[i].Held = int64(min(samples[i].Value.Uint64(), 1<<62))
		}
	}
	return out
}

// buffers is /debug/memory.
func (h *Handler) buffers(use func() MemoryUse) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		u, process := use(), readRuntime()
		if r.URL.Query().Get("format") == "json" {
			rt := object{"goroutines": runtime.NumGoroutine()}
			for _, s := range process {
				rt[s.Name] = s.Held
			}
			writeJSON(w, object{
				"listeners": nonNil(u.Listeners), "clusters": nonNil(u.Clusters), "streams": nonNil(u.Streams), "others": nonNil(u.Others), "runtime": rt,
			})
			return
		}
		text(w)
		write(w, "# bytes held by buffers, and the most that they may hold\n")
		for _, part := range []struct {
			what string
			of   []BufferUse
		}{{"listener", u.Listeners}, {"cluster", u.Clusters}} {
			for _, b := range part.of {
				write(w, "%s %s: connections %d, streams %d, read %d, write %d, bound %d\n", part.what, b.Name, b.Connections, b.Streams, b.Read, b.Write, b.Bound)
			}
		}
		for _, s := range u.Streams {
			write(w, "stream %d of %s in %s: held %d, bound %d\n", s.Stream, s.Peer, s.In, s.Held, s.Bound)
		}
		for _, o := range u.Others {
			bound := "as configured"
			if o.Bound > 0 {
				bound = strconv.FormatInt(o.Bound, 10)
			}
			write(w, "%s: held %d, bound %s\n", o.Name, o.Held, bound)
		}
		write(w, "# the Go runtime; goroutines %d\n", runtime.NumGoroutine())
		for _, s := range process {
			write(w, "%s: %d\n", s.Name, s.Held)
		}
	}
}

// nonNil makes an empty list of none.
func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
