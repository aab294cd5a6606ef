package istio

import (
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write golden texts from what is seen")

// exposition is what istio_* series the proxy has, without buckets and sums,
// which depend on the clock and on the length of headers.
func (s *scenario) exposition(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(s.metrics(t)) {
		name, _, _ := strings.Cut(line, "{")
		if strings.HasPrefix(name, "istio_") && name != "istio_build" && !strings.HasSuffix(name, "_bucket") && !strings.HasSuffix(name, "_sum") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// exposes fails unless the proxy comes to have exactly the n series that are
// written in testdata/<scenario>/exposition.txt.
func (s *scenario) exposes(t *testing.T, scenario string, n int) {
	t.Helper()
	file := filepath.Join("testdata", scenario, "exposition.txt")
	var want []byte
	if !*update {
		var err error
		if want, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	got := s.exposition(t)
	for end := time.Now().Add(20 * time.Second); got != string(want) && time.Now().Before(end); got = s.exposition(t) {
		time.Sleep(20 * time.Millisecond)
	}
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		want = []byte(got)
	}
	if lines := strings.Count(string(want), "\n"); lines != n {
		t.Errorf("%d series are wanted, want %d", lines, n)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTheWholeExpositionUnderIstiod(t *testing.T) {
	s := begin(t, "telemetry")
	const v1 = "http://web-v1.app.svc.cluster.local"
	s.shop.get(t, v1+"/")
	s.shop.get(t, v1+"/again")
	s.stranger.get(t, v1+"/")
	s.web1.reset(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	s.shop.get(t, v1+"/teapot")
	s.exposes(t, "telemetry", 12)
}

func TestTheExpositionOfDeniedRequestsGRPCAndTCP(t *testing.T) {
	s := begin(t, "telemetry-kinds")
	if a := s.stranger.get(t, "http://web-v1.app.svc.cluster.local/"); a.Status != http.StatusForbidden {
		t.Errorf("the denied request got %+v", a)
	}
	s.web1.reset(func(w http.ResponseWriter, r *http.Request) {
		status := "0"
		if strings.HasSuffix(r.URL.Path, "/Refuse") {
			status = "7"
		}
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 'o', 'k'})
		w.Header().Set("grpc-status", status)
	})
	for method, want := range map[string]string{"/shop.Orders/List": "0", "/shop.Orders/Refuse": "7"} {
		if resp, _ := s.shop.call(t, method); resp.Trailer.Get("grpc-status") != want {
			t.Errorf("%s got %v, %v", method, resp.Header, resp.Trailer)
		}
	}
	if resp, _ := s.stranger.call(t, "/shop.Orders/List"); resp.Header.Get("grpc-status") != "7" {
		t.Errorf("the denied call got %v", resp.Header)
	}
	if !s.asks(t, s.shop, "5432") {
		t.Error("an allowed connection is closed")
	}
	if s.asks(t, s.stranger, "5432") {
		t.Error("a denied connection gets through")
	}
	s.exposes(t, "telemetry-kinds", 24)
}
