package fault

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type upstream struct{}

func (upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

func compile(t *testing.T, base, override string) filters.HTTPFilter {
	t.Helper()
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(base)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var o filters.Config
	if override != "" {
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(override)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Factory{}.Compile(nil, cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func stream(f filters.HTTPFilter, headers ...string) *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	for i := 0; i < len(headers); i += 2 {
		s.Request.Add(headers[i], headers[i+1])
	}
	s.SetChain([]filters.HTTPFilter{f, upstream{}})
	return s
}

const all = `"percentage":{"numerator":100}`

func TestAbort(t *testing.T) {
	for _, tc := range []struct {
		name, config string
		grpc         bool
		status       int
		grpcStatus   string
	}{
		{"with an HTTP status", `{"abort":{"httpStatus":503,` + all + `}}`, false, 503, ""},
		{"of gRPC with an HTTP status", `{"abort":{"httpStatus":503,` + all + `}}`, true, 200, "14"},
		{"of gRPC with a gRPC status", `{"abort":{"grpcStatus":5,` + all + `}}`, true, 200, "5"},
		{"with a gRPC status", `{"abort":{"grpcStatus":5,` + all + `}}`, false, 404, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := stream(compile(t, `{}`, tc.config))
			s.Info.IsGRPC = tc.grpc
			q := explaintest.Ask(t, s.Chain()[0], s)
			r, err := filters.Start(s)
			if err != nil {
				t.Fatal(err)
			}
			q.Agrees(t, s, !r.Local, nil)
			if r.Status() != tc.status || r.Header.Get("grpc-status") != tc.grpcStatus || s.Info.Flags != streaminfo.FaultInjected || s.Info.Details != "fault_filter_abort" {
				t.Errorf("%d %q %v %q", r.Status(), r.Header.Get("grpc-status"), s.Info.Flags, s.Info.Details)
			}
		})
	}
}

func TestTheBodyOfAnAbort(t *testing.T) {
	for config, want := range map[string]string{
		`{"abort":{"httpStatus":503,` + all + `}}`:                            "fault filter abort",
		`{"abort":{"httpStatus":503,"responseBody":"try later",` + all + `}}`: "try later",
	} {
		r, err := filters.Start(stream(compile(t, config, "")))
		if err != nil {
			t.Fatal(err)
		}
		if b, _, err := r.Body.Next(); string(b) != want || err != nil {
			t.Errorf("%q, %v, want %q", b, err, want)
		}
	}
}

func TestDelayHoldsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stream(compile(t, `{"delay":{"fixedDelay":"5s",`+all+`}}`, ""))
		start := time.Now()
		r, err := filters.Start(s)
		if err != nil || r.Status() != 200 || time.Since(start) != 5*time.Second || s.Info.Flags != streaminfo.DelayInjected {
			t.Errorf("%v after %v, flags %v", err, time.Since(start), s.Info.Flags)
		}
	})
}

func TestAGoneClientEndsTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stream(compile(t, `{"delay":{"fixedDelay":"5s",`+all+`}}`, ""))
		gone := errors.New("gone")
		time.AfterFunc(time.Second, func() { s.Interrupt(gone) })
		start := time.Now()
		if _, err := filters.Start(s); !errors.Is(err, gone) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestPercentage(t *testing.T) {
	f := compile(t, `{"abort":{"httpStatus":503,"percentage":{"numerator":250000,"denominator":"MILLION"}}}`, "")
	n := 0
	for range 4000 {
		if r, err := filters.Start(stream(f)); err == nil && r.Status() == 503 {
			n++
		}
	}
	if n < 800 || n > 1200 {
		t.Errorf("%d of 4000 aborted, want about 1000", n)
	}
}

func TestRestrictions(t *testing.T) {
	for config, headers := range map[string][]string{
		`"headers":[{"name":"x","stringMatch":{"exact":"y"}}]`: {"x", "y"},
		`"downstreamNodes":["n"]`:                              {"x-envoy-downstream-service-node", "n"},
	} {
		f := compile(t, `{"abort":{"httpStatus":503,`+all+`},`+config+`}`, "")
		if r, _ := filters.Start(stream(f, headers...)); r.Status() != 503 {
			t.Errorf("%s does not match", config)
		}
		if r, _ := filters.Start(stream(f)); r.Status() != 200 {
			t.Errorf("%s matches everything", config)
		}
	}
}

func TestNothingConfiguredCostsNothing(t *testing.T) {
	if f := compile(t, `{}`, ""); f != nil {
		t.Error("an empty filter stays in the chain")
	}
	if f := compile(t, `{"abort":{"httpStatus":503,`+all+`}}`, `{}`); f != nil {
		t.Error("the route's configuration must replace the filter's")
	}
}

func TestDecodeReports(t *testing.T) {
	d := &filters.Decoding{}
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"delay":{"headerDelay":{}},"abort":{"headerAbort":{}},"responseRateLimit":{"fixedLimit":{"limitKbps":"1"}}}`)}, d); err != nil || len(d.Ignored()) != 3 {
		t.Errorf("%v %v", err, d.Ignored())
	}
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"abort":{"httpStatus":99}}`)}, nil); err == nil || !strings.Contains(err.Error(), "abort.http_status") {
		t.Errorf("%v", err)
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles, and answers or asks upstream.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"abort":{"httpStatus":503,"percentage":{"numerator":100}}}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		if cc, ok := c.(*Config); ok {
			cc.Delay = 0
		}
		fl, err := Factory{}.Compile(nil, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		if fl != nil {
			if _, err := filters.Start(stream(fl)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
