package corpus

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/fairlead-mesh/fairlead/internal/dns"
)

// names resolves inside the process: a name that begins with "h-127-1-2-3." has
// the address 127.1.2.3, no other has any.
var names = dns.Environment{Dial: func(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go answerDNS(ours)
	return theirs, nil
}}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

func answerDNS(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		var n uint16
		if binary.Read(c, binary.BigEndian, &n) != nil {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(b) != nil || len(q.Questions) != 1 {
			return
		}
		name := q.Questions[0].Name
		q.Response, q.RCode, q.Additionals = true, dnsmessage.RCodeNameError, nil
		if a, err := netip.ParseAddr(strings.ReplaceAll(strings.TrimPrefix(strings.Split(name.String(), ".")[0], "h-"), "-", ".")); err == nil {
			q.RCode = dnsmessage.RCodeSuccess
			if q.Questions[0].Type == dnsmessage.TypeA {
				q.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
					Body:   &dnsmessage.AResource{A: a.As4()},
				}}
			}
		}
		out, err := q.Pack()
		if err != nil {
			return
		}
		if _, err := c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(out)))); err != nil {
			return
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}
