// Everything here is public, so nothing takes care that its time tells nothing. Verifying takes a millisecond or two.
#include "base/ed25519.h"

#include <array>
#include <cstring>

#include "base/sha2.h"

namespace edgebert {
namespace {

// 256 bits, the lowest first.
using Bits256 = std::array<uint32_t, 8>;

Bits256 read_bits(const uint8_t* bytes) {
  Bits256 x;
  for (int i = 0; i < 8; ++i) {
    x[i] = bytes[4 * i] | uint32_t{bytes[4 * i + 1]} << 8 | uint32_t{bytes[4 * i + 2]} << 16 |
           uint32_t{bytes[4 * i + 3]} << 24;
  }
  return x;
}

int bit(const Bits256& x, int i) { return x[i / 32] >> (i % 32) & 1; }

// x += y; the carry out.
uint32_t add_to(Bits256& x, const Bits256& y) {
  uint64_t carry = 0;
  for (int i = 0; i < 8; ++i, carry >>= 32) {
    carry += uint64_t{x[i]} + y[i];
    x[i] = static_cast<uint32_t>(carry);
  }
  return static_cast<uint32_t>(carry);
}

// x -= y; the borrow out.
uint32_t subtract_from(Bits256& x, const Bits256& y) {
  uint64_t borrow = 0;
  for (int i = 0; i < 8; ++i) {
    const uint64_t difference = uint64_t{x[i]} - y[i] - borrow;
    x[i] = static_cast<uint32_t>(difference);
    borrow = difference >> 63;
  }
  return static_cast<uint32_t>(borrow);
}

bool is_less(Bits256 x, const Bits256& y) { return subtract_from(x, y) != 0; }

constexpr Bits256 kPrime = {0xffffffed, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x7fffffff};  // 2**255 - 19
constexpr Bits256 kOrder = {0x5cf5d3ed, 0x5812631a, 0xa2f79cd6, 0x14def9de, 0, 0, 0, 0x10000000};

// A number modulo kPrime, not always the smallest one: any of 256 bits, where 2**256 is 38.
struct Field {
  Bits256 bits;
};

Field small(uint32_t x) { return {{x, 0, 0, 0, 0, 0, 0, 0}}; }

// What `carry` stands for, taken into x.
void fold(Field& x, uint32_t carry) {
  while (carry != 0) carry = add_to(x.bits, small(38 * carry).bits);
}

Field operator+(Field x, const Field& y) {
  fold(x, add_to(x.bits, y.bits));
  return x;
}

Field operator-(Field x, const Field& y) {
  for (uint32_t borrow = subtract_from(x.bits, y.bits); borrow != 0;) borrow = subtract_from(x.bits, small(38).bits);
  return x;
}

Field operator*(const Field& x, const Field& y) {
  uint32_t product[16] = {};
  for (int i = 0; i < 8; ++i) {
    uint64_t carry = 0;
    for (int k = 0; k < 8; ++k, carry >>= 32) {
      carry += uint64_t{x.bits[i]} * y.bits[k] + product[i + k];
      product[i + k] = static_cast<uint32_t>(carry);
    }
    product[i + 8] = static_cast<uint32_t>(carry);
  }
  Field sum;
  uint64_t carry = 0;
  for (int i = 0; i < 8; ++i, carry >>= 32) {
    carry += product[i] + uint64_t{38} * product[i + 8];
    sum.bits[i] = static_cast<uint32_t>(carry);
  }
  fold(sum, static_cast<uint32_t>(carry));
  return sum;
}

Bits256 smallest(const Field& x) {
  Bits256 bits = x.bits;
  while (!is_less(bits, kPrime)) subtract_from(bits, kPrime);
  return bits;
}

bool operator==(const Field& x, const Field& y) { return smallest(x) == smallest(y); }

// x to a power whose bits are those of `top`, then 240 ones, then those of `bottom`, eight each.
Field power(const Field& x, int top, int bottom) {
  Field result = small(1);
  for (int i = 255; i >= 0; --i) {
    result = result * result;
    if (i >= 248 ? top >> (i - 248) & 1 : i >= 8 || (bottom >> i & 1)) result = result * x;
  }
  return result;
}

Field inverse(const Field& x) { return power(x, 0x7f, 0xeb); }  // x**(p - 2)

// A point (X / Z, Y / Z) of the curve -x**2 + y**2 = 1 + d x**2 y**2, and T = X Y / Z.
struct Point {
  Field x, y, z, t;
};

struct Curve {
  Field d = (small(0) - small(121665)) * inverse(small(121666));
  Field root_of_minus_1 = power(small(2), 0x1f, 0xfb);  // 2**((p - 1) / 4)
};

// RFC 8032, section 5.1.4; right for equal points too.
Point add(const Curve& curve, const Point& p, const Point& q) {
  const Field a = (p.y - p.x) * (q.y - q.x), b = (p.y + p.x) * (q.y + q.x);
  const Field c = p.t * (curve.d + curve.d) * q.t, d = (p.z + p.z) * q.z;
  const Field e = b - a, f = d - c, g = d + c, h = b + a;
  return {e * f, g * h, f * g, e * h};
}

// Section 5.1.3: the point with this y and the x of this lowest bit. False if there is none, or y is not the smallest.
bool find_point(const Curve& curve, const Field& y, uint32_t lowest_bit, Point* point) {
  if (!is_less(y.bits, kPrime)) return false;
  const Field y2 = y * y, u = y2 - small(1), v = curve.d * y2 + small(1), v3 = v * v * v;
  Field x = u * v3 * power(u * v3 * v3 * v, 0x0f, 0xfd);  // (u / v)**((p + 3) / 8)
  if (!(v * x * x == u)) x = x * curve.root_of_minus_1;
  if (!(v * x * x == u)) return false;
  if ((smallest(x)[0] & 1) != lowest_bit) x = small(0) - x;
  if ((smallest(x)[0] & 1) != lowest_bit) return false;  // x is 0
  *point = {x, y, small(1), x * y};
  return true;
}

// A number of 512 bits, the lowest first, modulo kOrder.
Bits256 reduce(const uint8_t* bytes) {
  Bits256 rest = {};
  for (int i = 511; i >= 0; --i) {
    const Bits256 same = rest;
    add_to(rest, same);
    rest[0] |= bytes[i / 8] >> (i % 8) & 1;
    if (!is_less(rest, kOrder)) subtract_from(rest, kOrder);
  }
  return rest;
}

}  // namespace

bool is_signed(std::string_view message, const uint8_t* signature, const uint8_t* public_key) {
  const Curve curve;
  const Bits256 s = read_bits(signature + 32);
  if (!is_less(s, kOrder)) return false;
  Field y = {read_bits(public_key)};
  const uint32_t lowest_bit = y.bits[7] >> 31;
  y.bits[7] &= 0x7fffffff;
  Point owner, base;
  if (!find_point(curve, y, lowest_bit, &owner)) return false;
  find_point(curve, {smallest(small(4) * inverse(small(5)))}, 0, &base);

  Sha512 hash;
  hash.update(signature, 32);
  hash.update(public_key, 32);
  hash.update(message.data(), message.size());
  uint8_t digest[Sha512::kDigestSize];
  hash.finish(digest);
  const Bits256 k = reduce(digest);

  // s * base - k * owner must be the signature's first point
  const Point minus_owner = {small(0) - owner.x, owner.y, owner.z, small(0) - owner.t};
  const Point both = add(curve, base, minus_owner);
  Point sum = {small(0), small(1), small(1), small(0)};
  for (int i = 255; i >= 0; --i) {
    sum = add(curve, sum, sum);
    if (bit(s, i) && bit(k, i)) {
      sum = add(curve, sum, both);
    } else if (bit(s, i)) {
      sum = add(curve, sum, base);
    } else if (bit(k, i)) {
      sum = add(curve, sum, minus_owner);
    }
  }
  const Field z = inverse(sum.z);
  Bits256 encoded = smallest(sum.y * z);
  encoded[7] |= smallest(sum.x * z)[0] << 31;
  return encoded == read_bits(signature);
}

}  // namespace edgebert
