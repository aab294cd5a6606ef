package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/admin"
)

// TestMemoryTellsWhoHoldsWhatAndItsBound uploads without end to an origin that
// does not read.
func TestMemoryTellsWhoHoldsWhatAndItsBound(t *testing.T) {
	quit := make(chan struct{})
	origin := h2cServer(t, func(http.ResponseWriter, *http.Request) { <-quit })
	t.Cleanup(func() { close(quit) })
	port, adminPort := freePort(t), freePort(t)
	startProxy(t, fmt.Sprintf("admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}\nstatic_resources:\n  listeners:", adminPort)+
		hcmListener("in", port, "out", "")+"  clusters:"+httpCluster("out", origin, "http2_protocol_options: {}"), nil)
	use := func() (u admin.MemoryUse) {
		t.Helper()
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/memory?format=json", adminPort))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&u); err != nil {
			t.Fatal(err)
		}
		if len(u.Listeners) != 1 || u.Listeners[0].Name != "in" {
			t.Fatalf("listeners: %+v", u.Listeners)
		}
		return u
	}
	if u := use(); len(u.Clusters) != 0 || len(u.Streams) != 0 || u.Listeners[0].Bound != 0 {
		t.Errorf("idle: %+v", u)
	}
	r, w := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/upload", port), r)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for buf := make([]byte, 64<<10); ; {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	}()
	cl := h2cClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		if resp, err := cl.Do(req.WithContext(ctx)); err == nil {
			_ = resp.Body.Close()
		}
	}()
	within(t, "a stream that waits", func() bool {
		u := use()
		if len(u.Streams) == 0 || len(u.Clusters) == 0 {
			return false
		}
		in, out, st := u.Listeners[0], u.Clusters[0], u.Streams[0]
		if st.Held > in.Read { // which was read before, and the upload is on its way
			return false
		}
		if in.Connections != 1 || in.Streams != 1 || in.Read > in.Bound {
			t.Errorf("listener: %+v", in)
		}
		if out.Name != "out" || out.Connections != 1 || out.Read+out.Write > out.Bound {
			t.Errorf("cluster: %+v", out)
		}
		if st.In != "listener in" || st.Stream != 1 || st.Held > st.Bound || st.Peer == "" {
			t.Errorf("stream: %+v", st)
		}
		return true
	})
	cancel()
	_ = r.Close()
	within(t, "the end of it", func() bool {
		u := use()
		return len(u.Streams) == 0 && u.Listeners[0].Read == 0
	})
	if names := fmt.Sprint(use().Others); names != "[{access logs 0 0}]" {
		t.Error(names)
	}
}
