package grpcstats

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/grpccount"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func frame(n int) string {
	return "\x00\x00\x00" + string([]byte{byte(n >> 8), byte(n)}) + strings.Repeat("m", n)
}

// echo reads the request and answers with the given bytes.
type echo struct{ answer string }

func (e echo) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	for last := false; !last; {
		_, last, _ = s.Body.Next()
	}
	s.Info.Upstream.ClusterRaw = "c"
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	r.Header.Add("grpc-status", "0")
	r.Body = message.Bytes([]byte(e.answer))
	return r, nil
}

func run(t *testing.T, config string, grpc bool, request, answer string) (*filters.Stream, *stats.Registry) {
	t.Helper()
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	reg := &stats.Registry{}
	f, err := Factory{}.Compile(&filters.Env{Stats: reg.Scope("")}, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn, s.Info.IsGRPC = &streaminfo.Conn{}, grpc
	s.Body = message.Bytes([]byte(request))
	s.SetChain([]filters.HTTPFilter{f, echo{answer}})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	for last := false; !last; {
		_, last, _ = r.Body.Next()
	}
	f.(filters.StreamEnder).OnStreamEnd(s, r)
	return s, reg
}

func TestCountsMessages(t *testing.T) {
	s, reg := run(t, `{"emitFilterState":true}`, true, frame(3)+frame(0)+frame(700), frame(1))
	c := grpccount.Of(&s.Info.FilterState)
	if c == nil || c.Request.Load() != 3 || c.Response.Load() != 1 || c.Serialize() != "3,1" {
		t.Fatalf("%v", c)
	}
	var b strings.Builder
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`request_message_count{envoy_cluster_name="c"} 3`, `response_message_count{envoy_cluster_name="c"} 1`, `success{envoy_cluster_name="c"} 1`, `total{envoy_cluster_name="c"} 1`} {
		if !strings.Contains(b.String(), "envoy_cluster_grpc_"+want) {
			t.Errorf("%s is missing in\n%s", want, b.String())
		}
	}
}

func TestWithoutFilterState(t *testing.T) {
	s, _ := run(t, `{}`, true, frame(3), frame(1))
	if grpccount.Of(&s.Info.FilterState) != nil {
		t.Error("filter state was emitted")
	}
}

func TestOtherRequestsPassUntouched(t *testing.T) {
	s, _ := run(t, `{"emitFilterState":true}`, false, "abc", "def")
	if grpccount.Of(&s.Info.FilterState) != nil {
		t.Error("counted a request that is not gRPC")
	}
}

// FuzzParser: as many messages are counted in pieces as in one, and as a naive
// walk finds.
func FuzzParser(f *testing.F) {
	f.Add([]byte(frame(3)+frame(0)), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		var whole, parts grpccount.Parser
		want := whole.Count(b)
		var naive uint64
		for p := b; len(p) >= 5; naive++ {
			p = p[min(5+uint64(binary.BigEndian.Uint32(p[1:])), uint64(len(p))):]
		}
		if want != naive {
			t.Errorf("%d messages, naively %d", want, naive)
		}
		var got uint64
		for n := int(size)%7 + 1; len(b) > 0; b = b[min(n, len(b)):] {
			got += parts.Count(b[:min(n, len(b))])
		}
		if got != want {
			t.Errorf("%d messages in pieces, %d in one", got, want)
		}
	})
}
