package routing

import (
	"fmt"
	"slices"
	"strings"
)

// hostIndex finds a virtual host by domain: exact, then the longest suffix
// wildcard, then the longest prefix wildcard, then "*".
type hostIndex struct {
	exact, suffix, prefix map[string]*virtualHost
	// lengths of the wildcards without "*", longest first.
	suffixLens, prefixLens []int
	any                    *virtualHost
	onlyAny                bool
}

func (x *hostIndex) add(domain string, vh *virtualHost) error {
	d, stripped := withoutTrailingDot(strings.ToLower(domain))
	put := func(m *map[string]*virtualHost, key string) error {
		if *m == nil {
			*m = map[string]*virtualHost{}
		}
		if old := (*m)[key]; old == vh && stripped {
			return nil // "a.test" and "a.test." of one virtual host
		} else if old != nil {
			return fmt.Errorf("domain %q is taken by virtual host %s; only unique domains are permitted", domain, old.spec.Name)
		}
		(*m)[key] = vh
		return nil
	}
	switch {
	case d == "*":
		if x.any != nil {
			return fmt.Errorf("domain \"*\" is taken by virtual host %s", x.any.spec.Name)
		}
		x.any = vh
		return nil
	case strings.HasPrefix(d, "*"):
		return put(&x.suffix, d[1:])
	case strings.HasSuffix(d, "*"):
		return put(&x.prefix, d[:len(d)-1])
	}
	return put(&x.exact, d)
}

// withoutTrailingDot strips the dot that requests have lost when they get here.
func withoutTrailingDot(domain string) (d string, stripped bool) {
	name := withoutPort(domain)
	if !strings.HasSuffix(name, ".") {
		return domain, false
	}
	return name[:len(name)-1] + domain[len(name):], true
}

func (x *hostIndex) finish() {
	x.suffixLens, x.prefixLens = lengths(x.suffix), lengths(x.prefix)
	x.onlyAny = len(x.exact)+len(x.suffix)+len(x.prefix) == 0
}

func lengths(m map[string]*virtualHost) []int {
	var ls []int
	for k := range m {
		ls = append(ls, len(k))
	}
	slices.Sort(ls)
	ls = slices.Compact(ls)
	slices.Reverse(ls)
	return ls
}

// find returns the virtual host for the authority, nil if there is none.
func (x *hostIndex) find(authority string, ignorePort bool) *virtualHost {
	if x.onlyAny {
		return x.any
	}
	if ignorePort {
		authority = withoutPort(authority)
	}
	if authority == "" {
		return x.any
	}
	var buf [256]byte
	host := lowerHost(authority, buf[:0])
	if vh := x.exact[string(host)]; vh != nil {
		return vh
	}
	for _, n := range x.suffixLens {
		if n < len(host) {
			if vh := x.suffix[string(host[len(host)-n:])]; vh != nil {
				return vh
			}
		}
	}
	for _, n := range x.prefixLens {
		if n < len(host) {
			if vh := x.prefix[string(host[:n])]; vh != nil {
				return vh
			}
		}
	}
	return x.any
}

// lowerHost appends s in ASCII lower case to buf.
func lowerHost(s string, buf []byte) []byte {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf = append(buf, c)
	}
	return buf
}

// withoutPort cuts the port off an authority; a bare IPv6 address in brackets
// has none.
func withoutPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.LastIndexByte(host, ']') > i {
		return host
	}
	return host[:i]
}
