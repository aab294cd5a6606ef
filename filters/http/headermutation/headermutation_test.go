package headermutation

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// xfcc is what istiod sends for ambient.istio.io/xfcc-include-client-identity.
const xfcc = `{"mutations":{"requestMutations":[{"append":{"appendAction":"OVERWRITE_IF_EXISTS_OR_ADD","header":{"key":"x-forwarded-client-cert","value":"By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%"}}}]}}`

type upstream struct{ seen message.Header }

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.seen.CopyFrom(&s.Request)
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	r.Header.Add("x-a", "1")
	r.Header.Add("x-b", "2")
	return r, nil
}

func run(t *testing.T, config, override string) (*upstream, *filters.Response) {
	t.Helper()
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var o filters.Config
	if override != "" {
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: typeURLPerRoute, JSON: true, Value: []byte(override)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Factory{}.Compile(nil, c, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Info.FilterState.Set("io.istio.peer_principal", streaminfo.String("spiffe://td/ns/a/sa/b"), streaminfo.SharingNone)
	s.Info.FilterState.Set("io.istio.local_principal", streaminfo.String("spiffe://td/ns/w/sa/w"), streaminfo.SharingNone)
	s.Request.Add(message.Path, "/")
	s.Request.Add("x-forwarded-client-cert", "URI=spiffe://forged")
	s.Request.Add("x-a", "1")
	s.Request.Add("x-b", "2")
	u := &upstream{}
	s.SetChain([]filters.HTTPFilter{f, u})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	return u, r
}

func TestTheClientsIdentityReplacesWhatItClaims(t *testing.T) {
	u, _ := run(t, xfcc, "")
	if got := u.seen.Get("x-forwarded-client-cert"); got != "By=spiffe://td/ns/w/sa/w;URI=spiffe://td/ns/a/sa/b" || u.seen.Count("x-forwarded-client-cert") != 1 {
		t.Errorf("%q", got)
	}
}

func TestActions(t *testing.T) {
	for _, tc := range []struct{ name, mutation, want string }{
		{"append", `{"append":{"header":{"key":"x-a","value":"3"}}}`, "1,3 2"},
		{"append another", `{"append":{"header":{"key":"X-C","value":"3"}}}`, "1 2 3"},
		{"add if absent", `{"append":{"appendAction":"ADD_IF_ABSENT","header":{"key":"x-a","value":"3"}}}`, "1 2"},
		{"overwrite", `{"append":{"appendAction":"OVERWRITE_IF_EXISTS_OR_ADD","header":{"key":"x-a","value":"%REQ(:PATH)%"}}}`, "/ 2"},
		{"overwrite if it exists", `{"append":{"appendAction":"OVERWRITE_IF_EXISTS","header":{"key":"x-c","value":"3"}}}`, "1 2"},
		{"deprecated append false", `{"append":{"append":false,"header":{"key":"x-a","value":"3"}}}`, "3 2"},
		{"empty", `{"append":{"appendAction":"OVERWRITE_IF_EXISTS_OR_ADD","header":{"key":"x-a","value":"%REQ(none)%"}}}`, "1 2"},
		{"empty is kept", `{"append":{"appendAction":"OVERWRITE_IF_EXISTS_OR_ADD","keepEmptyValue":true,"header":{"key":"x-a","value":""}}}`, " 2"},
		{"remove", `{"remove":"X-A"}`, "2"},
		{"remove on match", `{"removeOnMatch":{"keyMatcher":{"prefix":"x-"}}}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, r := run(t, `{"mutations":{"requestMutations":[`+tc.mutation+`],"responseMutations":[`+tc.mutation+`]}}`, "")
			for where, h := range map[string]*message.Header{"request": &u.seen, "response": &r.Header} {
				var parts []string
				for _, n := range []string{"x-a", "x-b", "x-c"} {
					if v, ok := h.Joined(n); ok {
						parts = append(parts, v)
					}
				}
				if got := strings.Join(parts, " "); got != tc.want {
					t.Errorf("%s: %q, want %q", where, got, tc.want)
				}
			}
		})
	}
}

func TestTheRoutesEditsFollow(t *testing.T) {
	u, _ := run(t, `{"mutations":{"requestMutations":[{"append":{"header":{"key":"x-c","value":"1"}}}]}}`, `{"mutations":{"requestMutations":[{"append":{"header":{"key":"x-c","value":"2"}}}]}}`)
	if v, _ := u.seen.Joined("x-c"); v != "1,2" {
		t.Errorf("%q", v)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, m := range map[string]string{
		"pseudo-header": `{"requestMutations":[{"remove":":path"}]}`, "host": `{"requestMutations":[{"append":{"header":{"key":"Host","value":"x"}}}]}`,
		"line break": `{"requestMutations":[{"append":{"header":{"key":"a","value":"x\r\ny"}}}]}`, "no name": `{"requestMutations":[{"append":{"header":{"key":"a b"}}}]}`,
		"query": `{"queryParameterMutations":[{"remove":"a"}]}`, "trailers": `{"responseTrailersMutations":[{"remove":"a"}]}`, "nothing": `{"requestMutations":[{}]}`,
		"unknown operator": `{"requestMutations":[{"append":{"header":{"key":"a","value":"%NOPE%"}}}]}`,
	} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"mutations":` + m + `}`)}, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and no accepted mutation touches the path.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(xfcc), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		if fl == nil {
			return
		}
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.Request.Add(message.Path, "/")
		s.SetChain([]filters.HTTPFilter{fl, &upstream{}})
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
		if s.Request.Get(message.Path) != "/" {
			t.Fatal("a pseudo-header was changed")
		}
	})
}
