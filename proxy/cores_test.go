package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// spin is a filter that computes until as many requests as meet are in it: a
// stream whose turn comes after another's would wait for ever.
type spin struct {
	meet    int32
	arrived atomic.Int32
	late    atomic.Int32
}

func (*spin) TypeURLs() []string { return []string{"type.googleapis.com/fairlead.test.v1.Spin"} }

func (*spin) Decode(filters.Any, *filters.Decoding) (filters.Config, error) { return "spin", nil }

func (*spin) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return "spin", nil
}

func (s *spin) Compile(*filters.Env, filters.Config, filters.Config) (filters.HTTPFilter, error) {
	return s, nil
}

// Do implements filters.HTTPFilter.
func (s *spin) Do(st *filters.Stream, next filters.Next) (*filters.Response, error) {
	s.arrived.Add(1)
	for end := time.Now().Add(20 * time.Second); s.arrived.Load() < s.meet; {
		if time.Now().After(end) {
			s.late.Add(1)
			break
		}
	}
	return next.Do(st)
}

// A tunnel is one connection, but its streams compute side by side: Envoy pins
// them to one worker.
func TestStreamsOfOneTunnelComputeSideBySide(t *testing.T) {
	ca, src := devCA(t)
	const n = 4
	f := &spin{meet: n}
	reg := builtin.Registry()
	reg.RegisterHTTP(f)
	h1, hbone := freePort(t), freePort(t)
	log := strconv.Quote(filepath.Join(t.TempDir(), "access.log"))
	doc := strings.ReplaceAll(fmt.Sprintf(allocYAML, h1, hbone, answerer(t), log), "          - name: istio.stats\n            typed_config: {\"@type\": type.googleapis.com/stats.PluginConfig}",
		"          - name: spin\n            typed_config: {\"@type\": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/fairlead.test.v1.Spin, value: {}}")
	p, err := proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{Registry: reg, Identity: src, DrainTime: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	waitAccepts(t, hbone)
	first, cl := tunnel(t, ca, "spiffe://cluster.local/ns/app/sa/client", hbone, "10.1.2.3:9080")
	defer cl.Close(netio.ErrClosed)
	streams := []netio.Conn{first}
	for len(streams) < n {
		streams = append(streams, openStream(t, cl, "10.1.2.3:9080"))
	}
	var wg sync.WaitGroup
	for _, c := range streams {
		wg.Go(func() {
			if _, err := c.Write([]byte("GET /api HTTP/1.1\r\nhost: a\r\n\r\n")); err != nil {
				t.Error(err)
				return
			}
			if l, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(l, "200") {
				t.Errorf("%q, %v", l, err)
			}
		})
	}
	wg.Wait()
	if f.arrived.Load() != n || f.late.Load() > 0 {
		t.Errorf("%d streams computed, %d of them waited for the others in vain", f.arrived.Load(), f.late.Load())
	}
}
