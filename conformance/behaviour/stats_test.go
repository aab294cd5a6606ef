package behaviour

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// statistics is the number of series in testdata/stats.txt.
const statistics = 137

// The values were written by Envoy for the same traffic. A series that isn't
// there counts as 0: both proxies make some only when there is something to
// count.
func TestStatisticsCountAsEnvoys(t *testing.T) {
	proxies, err := chosenProxies()
	if err != nil {
		if testing.Short() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join("testdata", "stats.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(filepath.Join("testdata", "stats.txtar"), data)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join("testdata", "stats.txt")
	wants, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(wants)), "\n")
	if len(lines) != statistics {
		t.Fatalf("%d series, want %d", len(lines), statistics)
	}
	for _, p := range proxies {
		t.Run(p.Name, func(t *testing.T) {
			in, err := p.Start(s, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer in.Stop()
			for i, r := range in.RunAll() {
				if r.Err != nil {
					t.Fatalf("%s: %v", s.Cases[i].Name, r.Err)
				}
			}
			var wrong []string
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				got, err := in.statistics()
				if err != nil {
					t.Fatal(err)
				}
				wrong = wrong[:0]
				for i, l := range lines {
					series, want, _ := strings.Cut(l, " ")
					v := got[series]
					if v == "" {
						v = "0"
					}
					if *update {
						lines[i] = series + " " + v
					} else if v != want {
						wrong = append(wrong, fmt.Sprintf("%s is %s, want %s", series, v, want))
					}
				}
				if len(wrong) == 0 && !*update || time.Now().After(end) {
					break
				}
			}
			for _, w := range wrong {
				t.Error(w)
			}
			if *update {
				if err := os.WriteFile(list, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// statistics reads /stats/prometheus: values by series, whose labels are sorted.
func (in *Instance) statistics() (map[string]string, error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", in.places.Admin))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok {
			series, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		name, labels, _ := strings.Cut(series, "{")
		if labels != "" {
			ls := strings.Split(labels, ",")
			slices.Sort(ls)
			name += "{" + strings.Join(ls, ",") + "}"
		}
		name = strings.ReplaceAll(name, "_"+strconv.Itoa(in.places.Port)+`"`, `_{{.Port}}"`)
		out[name] = value
	}
	return out, nil
}
