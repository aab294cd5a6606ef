package dlp

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"
	"strings"
)

// Names of the detectors of addresses of crypto currencies.
const (
	bitcoinAddress  = "BITCOIN_ADDRESS"
	ethereumAddress = "ETHEREUM_ADDRESS"
	tronAddress     = "TRON_ADDRESS"
)

const base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

var base58Class = classOf(base58)

// base58Rec recognizes addresses in Base58Check.
type base58Rec struct {
	typ      int
	first    string
	versions []byte
}

func (r *base58Rec) patterns() [][]set {
	return [][]set{{boundary, classOf(r.first), base58Class, base58Class}}
}

func (r *base58Rec) recognize(v *view, at, _ int, emit *emitter) {
	if isWord(v.at(at - 1)) {
		return
	}
	end := v.span(at, 36, &base58Class)
	if n := end - at; n < 25 || n > 35 || isWord(v.at(end)) {
		return
	}
	if r.valid(v.buf[at:end]) {
		emit.add(r.typ, at, end, VeryLikely)
	}
}

func (r *base58Rec) valid(s []byte) bool {
	var b [25]byte
	for _, c := range s {
		carry := strings.IndexByte(base58, c)
		for i := len(b) - 1; i >= 0; i-- {
			carry += 58 * int(b[i])
			b[i] = byte(carry)
			carry >>= 8
		}
		if carry != 0 {
			return false
		}
	}
	h := sha256.Sum256(b[:21])
	h = sha256.Sum256(h[:])
	return slices.Contains(r.versions, b[0]) && [4]byte(h[:4]) == [4]byte(b[21:])
}

// bech32Rec recognizes SegWit addresses: BIP 173 and BIP 350.
type bech32Rec struct{ typ int }

var bech32Prefixes = []string{"bc1", "ltc1"}

func (r *bech32Rec) patterns() [][]set { return foldedAll(bech32Prefixes) }

func (r *bech32Rec) recognize(v *view, at, id int, emit *emitter) {
	if isWord(v.at(at - 1)) {
		return
	}
	prefix := bech32Prefixes[id]
	end := v.span(at, 91, &alnumClass)
	if n := end - at; n < 14 || n > 90 || v.at(end) == '_' {
		return
	}
	s := v.buf[at:end]
	upper, low := false, false
	for _, c := range s {
		upper = upper || isUpper(c)
		low = low || isAlpha(c) && !isUpper(c)
	}
	if upper && low {
		return
	}
	const charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
	human := prefix[:len(prefix)-1]
	sum := uint32(1)
	step := func(x byte) {
		top := sum >> 25
		sum = (sum&0x1ffffff)<<5 ^ uint32(x)
		for i, g := range [...]uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 == 1 {
				sum ^= g
			}
		}
	}
	for i := range len(human) {
		step(human[i] >> 5)
	}
	step(0)
	for i := range len(human) {
		step(human[i] & 31)
	}
	for _, c := range s[len(prefix):] {
		x := -1
		for i := range len(charset) {
			if charset[i] == lower(c) {
				x = i
			}
		}
		if x < 0 {
			return
		}
		step(byte(x))
	}
	if sum == 1 || sum == 0x2bc830a3 {
		emit.add(r.typ, at, end, VeryLikely)
	}
}

// ethereumRec recognizes addresses by the checksum in the case of their
// letters, EIP-55; in one case they need context.
type ethereumRec struct{ typ int }

func (r *ethereumRec) patterns() [][]set {
	return [][]set{append([]set{boundary}, append(exactly("0x"), hexClass, hexClass)...)}
}

func (r *ethereumRec) recognize(v *view, at, _ int, emit *emitter) {
	if isWord(v.at(at - 1)) {
		return
	}
	start := at + 2
	end := v.span(start, 41, &hexClass)
	if end-start != 40 || isWord(v.at(end)) {
		return
	}
	upper, low := 0, 0
	var folded [40]byte
	for i, c := range v.buf[start:end] {
		folded[i] = lower(c)
		upper += btoi(isUpper(c))
		low += btoi(isAlpha(c) && !isUpper(c))
	}
	l := Unlikely
	if upper > 0 && low > 0 {
		h := keccak256(folded[:])
		for i, c := range v.buf[start:end] {
			if isAlpha(c) && isUpper(c) != (h[i/2]>>(4*(1-i%2))&8 != 0) {
				return
			}
		}
		l = VeryLikely
	} else if entropy(folded[:]) < 2.5 { // 0x000…01
		return
	}
	emit.add(r.typ, at, end, v.boost(l, at, []string{"eth", "ether", "ethereum", "wallet", "erc20", "0x address", "metamask"}))
}

// keccak256 is the hash of Ethereum, which is SHA-3 before its standard
// changed the padding, of up to 135 bytes.
func keccak256(p []byte) [32]byte {
	var block [136]byte
	copy(block[:], p)
	block[len(p)] = 1
	block[135] |= 0x80
	var a [25]uint64
	for i := range 17 {
		a[i] = binary.LittleEndian.Uint64(block[8*i:])
	}
	keccakF(&a)
	var out [32]byte
	for i := range 4 {
		binary.LittleEndian.PutUint64(out[8*i:], a[i])
	}
	return out
}

func keccakF(a *[25]uint64) {
	rotations := [24]int{1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 2, 14, 27, 41, 56, 8, 25, 43, 62, 18, 39, 61, 20, 44}
	lanes := [24]int{10, 7, 11, 17, 18, 3, 5, 16, 8, 21, 24, 4, 15, 23, 19, 13, 12, 2, 20, 14, 22, 9, 6, 1}
	lfsr := byte(1)
	for range 24 {
		var c [5]uint64
		for x := range 5 {
			c[x] = a[x] ^ a[x+5] ^ a[x+10] ^ a[x+15] ^ a[x+20]
		}
		for x := range 5 {
			d := c[(x+4)%5] ^ bits.RotateLeft64(c[(x+1)%5], 1)
			for y := 0; y < 25; y += 5 {
				a[y+x] ^= d
			}
		}
		t := a[1]
		for i, lane := range lanes {
			t, a[lane] = a[lane], bits.RotateLeft64(t, rotations[i])
		}
		for y := 0; y < 25; y += 5 {
			row := [5]uint64(a[y : y+5])
			for x := range 5 {
				a[y+x] = row[x] ^ ^row[(x+1)%5]&row[(x+2)%5]
			}
		}
		for j := range 7 {
			if lfsr&1 == 1 {
				a[0] ^= 1 << (1<<j - 1)
			}
			if lfsr>>7 == 1 {
				lfsr = lfsr<<1 ^ 0x71
			} else {
				lfsr <<= 1
			}
		}
	}
}
