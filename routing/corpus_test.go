package routing_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// corpusSize is the number of cases in testdata/corpus. Each is a request
// (method, authority and target, then headers, then "@random" for the stream's
// random number) and what must come of it:
//
//	-> none                  no route matches
//	-> status 301            a local reply; also "location" and "body"
//	-> cluster c1            where it is forwarded, by which "route"
//	-> response x-a b        a header of the response
//	-> x-a b,c               a header upstream, values joined; "-> !x-a" is absent
//
// TestEnvoyAgreesWithTheCorpus runs the same cases against Envoy.
const corpusSize = 170

type corpusCase struct {
	line                   int
	method, authority, tgt string
	headers                [][2]string
	random                 *uint64
	want                   []string
}

func (c *corpusCase) String() string {
	return fmt.Sprintf("line %d: %s %s %s", c.line, c.method, c.authority, c.tgt)
}

type corpusFile struct {
	name   string
	routes []byte
	cases  []corpusCase
}

func readCorpus(t *testing.T) []corpusFile {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "corpus", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	var files []corpusFile
	total := 0
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		a := txtar.Parse(b)
		f := corpusFile{name: strings.TrimSuffix(filepath.Base(name), ".txtar")}
		for _, x := range a.Files {
			switch x.Name {
			case "routes.yaml":
				f.routes = x.Data
			case "cases":
				first := strings.Count(string(b[:strings.Index(string(b), "-- cases --")]), "\n") + 2
				f.cases = parseCases(t, name, string(x.Data), first)
			default:
				t.Fatalf("%s: unknown section %s", name, x.Name)
			}
		}
		total += len(f.cases)
		files = append(files, f)
	}
	if total != corpusSize {
		t.Errorf("the corpus has %d cases, corpusSize says %d", total, corpusSize)
	}
	return files
}

func parseCases(t *testing.T, file, src string, line int) []corpusCase {
	t.Helper()
	var cs []corpusCase
	var c *corpusCase
	for i, l := range strings.Split(src, "\n") {
		switch {
		case strings.HasPrefix(l, "#"):
		case l == "":
			c = nil
		case c == nil:
			f := strings.SplitN(l, " ", 3)
			if len(f) != 3 {
				t.Fatalf("%s:%d: want METHOD AUTHORITY TARGET", file, line+i)
			}
			cs = append(cs, corpusCase{line: line + i, method: f[0], authority: f[1], tgt: f[2]})
			c = &cs[len(cs)-1]
		case strings.HasPrefix(l, "-> "):
			c.want = append(c.want, l[3:])
		case strings.HasPrefix(l, "@random "):
			n, err := strconv.ParseUint(l[8:], 10, 64)
			if err != nil {
				t.Fatalf("%s:%d: %v", file, line+i, err)
			}
			c.random = &n
		default:
			k, v, ok := strings.Cut(l, ":")
			if !ok {
				t.Fatalf("%s:%d: want a header, an expectation or an empty line", file, line+i)
			}
			c.headers = append(c.headers, [2]string{k, strings.TrimSpace(v)})
		}
	}
	return cs
}

// outcome is what came of a request.
type outcome struct {
	route, cluster string
	none, local    bool
	status         int
	body           string
	upstream, resp *message.Header
}

func (o *outcome) check(t *testing.T, c *corpusCase, knowsRoute bool) {
	t.Helper()
	for _, w := range c.want {
		key, val, _ := strings.Cut(w, " ")
		var got string
		switch {
		case key == "none":
			if !o.none {
				t.Errorf("%v: a route matched: %s %s", c, o.route, o.cluster)
			}
			continue
		case key == "route":
			if !knowsRoute {
				continue
			}
			got = o.route
		case key == "cluster":
			got = o.cluster
		case key == "status":
			got = strconv.Itoa(o.status)
		case key == "location":
			got = o.resp.Get("location")
		case key == "body":
			got = o.body
		case key == "response":
			key, val, _ = strings.Cut(val, " ")
			if strings.HasPrefix(key, "!") {
				if o.resp.Has(key[1:]) {
					t.Errorf("%v: the response has %s", c, key[1:])
				}
				continue
			}
			got, _ = o.resp.Joined(key)
		case strings.HasPrefix(key, "!"):
			if o.upstream == nil || o.upstream.Has(key[1:]) {
				t.Errorf("%v: upstream sees %s", c, key[1:])
			}
			continue
		default:
			if o.upstream == nil {
				t.Errorf("%v: was not forwarded", c)
				continue
			}
			got, _ = o.upstream.Joined(key)
		}
		if got != val {
			t.Errorf("%v: %s is %q, want %q", c, key, got, val)
		}
	}
	if o.none && !strings.Contains(strings.Join(c.want, "\n"), "none") {
		t.Errorf("%v: no route matched", c)
	}
}

// stream makes the request as HCM hands it to routing.
func (c *corpusCase) stream() *filters.Stream {
	s := newStream()
	h := &s.Request
	proto := "http"
	for _, kv := range c.headers {
		if strings.EqualFold(kv[0], "x-forwarded-proto") {
			proto = kv[1]
		}
	}
	h.Add(message.Method, c.method)
	h.Add(message.Scheme, proto)
	h.Add(message.Authority, c.authority)
	if c.tgt != "-" {
		h.Add(message.Path, c.tgt)
	}
	h.Add("x-forwarded-proto", proto)
	for _, kv := range c.headers {
		if k := strings.ToLower(kv[0]); k != "x-forwarded-proto" {
			h.Add(k, kv[1])
		}
	}
	if c.random != nil {
		s.Random = *c.random
	}
	return s
}

func (c *corpusCase) run(table *routing.Table) *outcome {
	s := c.stream()
	r := table.Match(s)
	if r == nil {
		return &outcome{none: true, status: 404}
	}
	s.SelectRoute(r)
	if resp := r.DirectReply(s); resp != nil {
		r.FinalizeResponse(s, resp)
		b, _, _ := resp.Body.Next()
		return &outcome{route: r.Name(), local: true, status: resp.Status(), body: string(b), resp: &resp.Header}
	}
	o := &outcome{route: r.Name(), cluster: r.Cluster(s), status: 200}
	r.FinalizeRequest(s, false)
	up := &message.Header{}
	up.CopyFrom(&s.Request)
	o.upstream = up
	resp := s.NewResponse()
	resp.Header.Add(message.Status, "200")
	resp.Header.Add("x-upstream", "yes")
	r.FinalizeResponse(s, resp)
	o.resp = &resp.Header
	return o
}

func TestCorpus(t *testing.T) {
	d := xdsresource.NewDecoder(nil, xdsresource.Options{})
	for _, f := range readCorpus(t) {
		t.Run(f.name, func(t *testing.T) {
			v, err := d.FromYAML(xdsresource.RouteType, f.routes)
			if err != nil {
				t.Fatal(err)
			}
			rc, ok := v.(*xdsresource.RouteConfiguration)
			if !ok || len(rc.Ignored) > 0 {
				t.Fatalf("%T, ignored %v", v, rc.Ignored)
			}
			table, errs := routing.Compile(rc, routing.Options{})
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			for i := range f.cases {
				f.cases[i].run(table).check(t, &f.cases[i], true)
			}
		})
	}
}
