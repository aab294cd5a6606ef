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

// exposedSeries is the number of series in testdata/telemetry/exposition.txt.
const exposedSeries = 12

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

func TestTheWholeExpositionUnderIstiod(t *testing.T) {
	s := begin(t, "telemetry")
	const v1 = "http://web-v1.app.svc.cluster.local"
	s.shop.get(t, v1+"/")
	s.shop.get(t, v1+"/again")
	s.stranger.get(t, v1+"/")
	s.web1.reset(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	s.shop.get(t, v1+"/teapot")
	file := filepath.Join("testdata", "telemetry", "exposition.txt")
	var want []byte
	if !*update {
		var err error
		if want, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	got := s.exposition(t)
	for end := time.Now().Add(3 * time.Second); got != string(want) && time.Now().Before(end); got = s.exposition(t) {
		time.Sleep(20 * time.Millisecond)
	}
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		want = []byte(got)
	}
	if n := strings.Count(string(want), "\n"); n != exposedSeries {
		t.Errorf("%d series are wanted, want %d", n, exposedSeries)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
