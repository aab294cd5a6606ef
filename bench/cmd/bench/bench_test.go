package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/origin"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

func TestWorkloads(t *testing.T) {
	all := workloads(64)
	var names, quick []string
	for i := range all {
		w := &all[i]
		if slices.Contains(names, w.name) || w.streams == 0 || w.tunnels == 0 || w.size == 0 || w.routes == 0 {
			t.Errorf("%+v", w)
		}
		names = append(names, w.name)
		if w.quick {
			quick = append(quick, w.name)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(w.h1())))
		if err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) != w.post || r.Host != authority {
			t.Errorf("%s: %d bytes for %s, %v", w.name, len(body), r.Host, err)
		}
	}
	if want := "hbone-hbone closed,hbone-hbone paced 5k/s,hbone-plain closed,hbone-plain paced 5k/s,h1-h1 closed,h1-h1 paced 5k/s"; strings.Join(quick, ",") != want {
		t.Errorf("quick: %q", quick)
	}
	if len(names) != 33 {
		t.Errorf("%d workloads: %q", len(names), names)
	}
	// A bar on what nobody runs would never be missed.
	for _, b := range report.Bars() {
		for _, w := range []string{b.Workload, b.ToWorkload} {
			if w != "" && !slices.Contains(names, w) && report.Units[w] == "" {
				t.Errorf("bar on %q", w)
			}
		}
		if b.To != "" && !contender.Supports(b.To, contender.HBONEPlain) && !contender.Supports(b.To, contender.H1H1) {
			t.Errorf("bar against %q", b.To)
		}
	}
}

func TestSelection(t *testing.T) {
	b := &bench{o: &options{streams: 8, only: "routes,h1-h1 closed"}, names: []string{"fairlead", "haproxy", "ztunnel", "floor"}}
	got := b.selected()
	var names []string
	for _, w := range got {
		names = append(names, w.name)
	}
	if strings.Join(names, ",") != "h1-h1 closed,h1-h1 1000 routes closed,h1-h1 5000 routes closed" {
		t.Errorf("%q", names)
	}
	if u := b.users(&got[0]); strings.Join(u, ",") != "fairlead,haproxy,floor" {
		t.Errorf("%q", u)
	}
	if u := b.users(&got[1]); strings.Join(u, ",") != "fairlead,haproxy" {
		t.Errorf("%q", u)
	}
}

func TestHTTP2Requests(t *testing.T) {
	p := payload{post: 128, size: origin.Size, grpc: true}
	r := p.h2("http")
	if len(r.Body) != 133 || !r.GRPC || r.Bidi || r.Header[0].Value != "POST" {
		t.Errorf("%+v", r)
	}
	p = payload{size: 64 << 10}
	if r = p.h2("https"); len(r.Body) != 0 || r.Header[3].Value != "/bytes/65536" || r.Size != 64<<10 {
		t.Errorf("%+v", r)
	}
}

func TestMachine(t *testing.T) {
	if got := field("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name : other\n", "model name"); got != "Some CPU @ 2 GHz" {
		t.Error(got)
	}
	if m := machine(); !strings.Contains(m, "processors") {
		t.Error(m)
	}
	if n := descriptors(256); n < 256 {
		t.Error(n)
	}
}
