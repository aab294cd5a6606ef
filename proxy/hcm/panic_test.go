package hcm

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// bomb panics where when says, and is an access log, too.
type bomb struct {
	when  string
	ended *atomic.Int32
}

func (b bomb) at(when string) {
	if b.when == when {
		panic("a filter's bug")
	}
}

func (b bomb) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	b.at("before")
	r, err := next.Do(s)
	b.at("after")
	return r, err
}

func (b bomb) OnStreamEnd(*filters.Stream, *filters.Response) { b.ended.Add(1); b.at("end") }
func (b bomb) Log(*format.Context)                            { b.at("log") }

type ok struct{}

func (ok) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.LocalReply(200, "fine", "seen", 0), nil
}

// One request fails at most; the process, and what is told to those that count
// streams, do not.
func TestAPanicCostsOneStream(t *testing.T) {
	for when, status := range map[string]int{"before": 500, "after": 500, "end": 200, "log": 200} {
		t.Run(when, func(t *testing.T) {
			reg, ended := &stats.Registry{}, &atomic.Int32{}
			b := bomb{when, ended}
			m, err := New(Config{
				Spec: &xdsresource.HTTPConnectionManager{}, Routes: &Routes{}, Stats: reg.Scope("h_"), AccessLogs: []AccessLogger{b},
				DefaultChain: []filters.HTTPFilter{bomb{"", ended}, b, ok{}},
			})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				a := netip.MustParseAddrPort("127.0.0.1:80")
				near, far := netio.Pipe(a, a)
				done := make(chan struct{})
				go m.Serve(&filters.Connection{Conn: far, Info: &streaminfo.Info{Conn: &streaminfo.Conn{Local: a, Remote: a, DirectRemote: a}}}, func() { close(done) })
				if _, err := io.WriteString(near, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(bufio.NewReader(near), nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != status || status == 200 && string(body) != "fine" {
					t.Errorf("got %d %q, want %d", resp.StatusCode, body, status)
				}
				_ = near.Close()
				<-done
			}
			if n := ended.Load(); n != 4 {
				t.Errorf("two filters were told of %d ends of two streams", n)
			}
			if n, want := fmt.Sprint(m.st.panics.Value()), "2"; n != want {
				t.Errorf("%s panics are counted, want %s", n, want)
			}
			if n := m.st.rqActive.Value(); n != 0 {
				t.Errorf("%d streams are active", n)
			}
		})
	}
}
