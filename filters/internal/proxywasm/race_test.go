package proxywasm

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
)

// TestStreamsOfManyGoroutines runs every kind of stream at once, with callouts
// that come back while others are in the guest, and VMs that are added.
func TestStreamsOfManyGoroutines(t *testing.T) {
	w := newWorld(t, Config{PluginConfig: "tick"})
	w.log.level = 100
	kinds := []string{
		"", "headers", "local", "call", "call-deny", "body-call", "buffer body-call", "response-call", "property", "shared", "metric", "enqueue", "buffer body-replace",
		"response-buffer response-length response-replace", "path", "pairs", "grpc", "body-deny", "body-property",
	}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 40 {
				do := kinds[(g*7+i)%len(kinds)]
				status, err := once(w, do)
				want := "200"
				switch {
				case strings.Contains(do, "deny"):
					want = "40"
				case do == "local":
					want = "403"
				case do == "grpc":
					want = "503" // the answer is no gRPC
				}
				if err != nil || !strings.HasPrefix(status, want) {
					t.Errorf("%q: %s %v", do, status, err)
				}
			}
		})
	}
	all.Wait()
	vms := *w.p.pool.vms.Load()
	if len(vms) > runtime.GOMAXPROCS(0) {
		t.Errorf("%d VMs", len(vms))
	}
	for _, v := range vms {
		v.mu.Lock()
		if len(v.contexts) != 2 {
			t.Errorf("%d contexts are left: the VM's and the root are", len(v.contexts))
		}
		v.mu.Unlock()
	}
}

// pumped sends the request's body from another goroutine, as the router does.
type pumped struct{}

func (pumped) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	done := make(chan error, 1)
	go func() {
		_, _, err := drain(s.Body)
		done <- err
	}()
	s.Info.Upstream.Host = "10.0.0.1:80"
	r := s.NewResponse()
	r.Header.Add(":status", "200")
	r.Body = &chunks{parts: []string{"one", "two"}, wait: func() { s.Info.BytesSent++ }}
	s.Info.Details, s.Info.ResponseCode = "via_upstream", 200
	if err := <-done; err != nil {
		return nil, fmt.Errorf("pump: %w", err)
	}
	return r, nil
}

func once(w *world, do string) (string, error) {
	s := newStream(do, &chunks{parts: []string{"some", "body"}})
	s.SetChain([]filters.HTTPFilter{w.p, pumped{}})
	r, err := filters.Start(s)
	status := ""
	if r != nil {
		s.Response = r
		status = r.Header.Get(":status")
		_, _, err = drain(r.Body)
		r.Body.Close()
	}
	w.p.OnStreamEnd(s, r)
	return status, err
}
